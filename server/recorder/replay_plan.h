// The plan of a replay: which rows of a recording it sends, in which order and messages. No thread and no disk.
#ifndef HOOKLINE_SERVER_RECORDER_REPLAY_PLAN_H_
#define HOOKLINE_SERVER_RECORDER_REPLAY_PLAN_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/shuffled_order.h"
#include "server/capture/request.h"
#include "server/capture/resume_token.h"
#include "server/recording/manifest.h"
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

// A position between two chunks. `row` is the first row of a row group, of which `hook_points` chunks have been sent.
struct ReplayPosition {
  int64_t row = 0;
  int32_t hook_points = 0;
};

struct ReplayPlan {
  struct HookPoint {
    int index = 0;  // in the manifest
    std::string name;
    int64_t row_bytes = 0;
    int64_t budget = 0;  // rows to send
  };

  // Returns `position`, or the first one after it at which a chunk begins; most_rows if there is none.
  ReplayPosition SkipToChunk(ReplayPosition position) const;
  ReplayPosition After(const ReplayPosition& position) const {
    return SkipToChunk({position.row, position.hook_points + 1});
  }

  // Returns how many rows of a hook point have been sent at `position`.
  int64_t SentOf(int hook_point, const ReplayPosition& position) const;

  // Returns the places of the replay's rows from `row` on in the recording, in the recording's order.
  std::vector<RowRange> RangesOf(int64_t row, int64_t count) const;

  // Returns the bytes of the largest chunk's values, at least 1.
  int64_t ChunkBytes() const;

  std::string Token(const ReplayPosition& position) const;
  // Reads a token that Token made. Errors of DecodeResumeToken.
  absl::StatusOr<ReplayPosition> ReadToken(absl::string_view token) const;

  int64_t first_row = 0;  // of the range
  int64_t rows = 0;       // of the range
  std::vector<HookPoint> hook_points;
  int64_t most_rows = 0;   // the largest budget
  int64_t group_rows = 0;  // of a row group
  bool is_budgeted = false;
  std::optional<ShuffledOrder> order;
  bool provenance = false;
  int64_t max_message_bytes = 0;
  CaptureDigests digests;
};

// Checks a request against the recording. INVALID_ARGUMENT, naming the field, as the proto says.
absl::StatusOr<ReplayPlan> PlanReplay(const Manifest& manifest, const ReplayRequest& request);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_REPLAY_PLAN_H_
