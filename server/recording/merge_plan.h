// Decides whether recordings of parts of a dataset can be merged into one, and makes its manifest.
//
//   ASSIGN_OR_RETURN(MergePlan plan, PlanMerge("run1", {{"a/run1", manifest_a}, {"b/run1", manifest_b}}));
//
// Parts are put in the order of their sequences. They must be complete, alike in everything that a row depends on, and
// follow each other without a gap; then their rows, one part after another, are those of one recording of all their
// sequences. No row is read.
#ifndef HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_
#define HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/recording/manifest.h"

namespace hookline {

// One of `count` ranges into which the `sequence_count` sequences from `first_sequence` on are cut. It reaches from
// PartBegin(part, index) to PartBegin(part, index + 1). The recording of such a range has it in its manifest's source,
// so that a merge knows whether all ranges are there.
struct RecordingPart {
  int64_t index = 0;
  int64_t count = 1;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
};

// This is more servers than any cluster has, so that a request for more is a mistake. It also keeps a part's index
// times a dataset's sequences (below 2^40) far below 2^63.
inline constexpr int64_t kMaxParts = 1000;
// The manifest of this many shards stays below the 256 MiB that a reader accepts. With 256 MiB each they hold 128 TiB.
inline constexpr size_t kMaxMergedShards = 500'000;

// Returns the first sequence of part `index`, from 0 to `count`. The sizes of parts differ by at most one sequence.
int64_t PartBegin(const RecordingPart& whole, int64_t index);

// Returns the member `part` of a manifest's source.
nlohmann::json PartJson(const RecordingPart& part);

// A recording to merge. The label is its name in the request.
struct MergePart {
  std::string label;
  Manifest manifest;
};

struct MergePlan {
  Manifest manifest;  // without the client, and with the times of a part
  // The origin of a shard: the index of its part in the parts as they were given, and its file name there.
  struct Source {
    size_t part = 0;
    std::string file;
  };
  std::vector<Source> sources;
};

// Plans the merge of 1 to kMaxParts parts. FAILED_PRECONDITION, naming the parts and both values: a part is not
// complete; two parts differ, overlap or leave a gap; a budget ended a part before its last sequence; or the parts have
// too many rows or shards for one recording.
absl::StatusOr<MergePlan> PlanMerge(const std::string& name, const std::vector<MergePart>& parts);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_
