// A recording played back as the capture that it was made from: the proto RecordingService.ReadRecording. Needs no
// model.
#ifndef HOOKLINE_SERVER_RECORDER_REPLAY_H_
#define HOOKLINE_SERVER_RECORDER_REPLAY_H_

#include <cstdint>
#include <functional>
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

// The services that a replay needs from its caller.
struct ReplayHost {
  // Runs an action soon on another thread, which may wait for the disk. A replay posts one action at a time, and each
  // is short: a slice of a shard's check, or one message's rows.
  std::function<void(std::function<void()>)> post;
  // An event is ready after Next returned none. Called from the threads of `post`; must not block.
  std::function<void()> on_ready;
};

// Starts a replay. It reads the next message while the one before is being sent, and so holds two. Shards are checked
// before their rows are sent, see RowRead. INVALID_ARGUMENT, naming the field, as the proto says; RESOURCE_EXHAUSTED:
// other reads hold too much memory.
absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request, ReplayHost host);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_REPLAY_H_
