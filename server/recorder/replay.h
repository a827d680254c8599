// A recording played back as the capture that it was made from: the proto RecordingService.ReadRecording. Needs no
// model.
#ifndef HOOKLINE_SERVER_RECORDER_REPLAY_H_
#define HOOKLINE_SERVER_RECORDER_REPLAY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/capture/capture.h"
#include "server/capture/request.h"
#include "server/recording/reader.h"

namespace hookline {

// The proto ReadRecordingRequest in plain C++, field by field.
struct ReplayRequest {
  std::vector<std::string> hook_points;  // names and wildcards; none: all
  int64_t first_row = 0;
  int64_t row_count = 0;  // 0: all that follow
  std::optional<int64_t> max_activations;
  std::map<std::string, int64_t> max_activations_by_hook_point;
  std::optional<uint64_t> shuffle_seed;
  Encoding encoding = Encoding::kBytes;
  bool provenance = false;
  int64_t max_message_bytes = 0;  // 0: the default
  std::string resume_token;
};

// The capture has an event at every Next until it has ended. In the recording's order its chunks lie in the recording's
// memory map, which they keep alive; in shuffled order they are copies, one chunk at a time.
// INVALID_ARGUMENT, naming the field, as the proto says.
absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_REPLAY_H_
