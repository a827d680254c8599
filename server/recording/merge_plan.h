// Decides whether recordings of parts of a dataset are one recording, and what its manifest is.
//
//   ASSIGN_OR_RETURN(MergePlan plan, PlanMerge("run1", {{"a/run1", manifest_a}, {"b/run1", manifest_b}}));
//
// Parts are put in the order of their sequences. They must be complete, alike in everything that a row depends on, and
// follow each other without a gap; then the rows of all of them, one after another, are those that one recording of all
// their sequences has. No row is read.
#ifndef HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_
#define HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/recording/manifest.h"

namespace hookline {

// One of `count` ranges of the `sequence_count` sequences from `first_sequence` on: its sequences begin at
// PartBegin(part), and those of the next part there. A manifest's source holds it for a recording of such a range, so
// that a merge knows whether all are there.
struct RecordingPart {
  int64_t index = 0;
  int64_t count = 1;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
};

// More servers than any cluster has, so that a request for more is a mistake. A part's index times a dataset's
// sequences (below 2^40) also stays far below 2^63.
inline constexpr int64_t kMaxParts = 1000;
// Their manifest stays below the 256 MiB that a reader takes. In shards of 256 MiB these are 128 TiB.
inline constexpr size_t kMaxMergedShards = 500'000;

// The first sequence of part `index`, from 0 to `count`: all have the same number of sequences, or one more.
int64_t PartBegin(const RecordingPart& whole, int64_t index);

// The member `part` of a manifest's source.
nlohmann::json PartJson(const RecordingPart& part);

// A recording that is to be merged, by the name that the request has for it.
struct MergePart {
  std::string label;
  Manifest manifest;
};

struct MergePlan {
  Manifest manifest;  // without its client and times
  // For each shard of the manifest: the part that it comes from, an index of the parts as they were given, and its name
  // there.
  struct Source {
    size_t part = 0;
    std::string file;
  };
  std::vector<Source> sources;
};

// `parts` are at least one and at most kMaxParts. FAILED_PRECONDITION, naming the parts and both values: a part is not
// complete, two differ, overlap or leave a gap, a budget ended one before its last sequence, or they have too many rows
// or shards for one recording.
absl::StatusOr<MergePlan> PlanMerge(const std::string& name, const std::vector<MergePart>& parts);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_MERGE_PLAN_H_
