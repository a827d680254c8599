// Finds the recordings that a merge names.
#ifndef HOOKLINE_SERVER_RECORDING_MERGE_PARTS_H_
#define HOOKLINE_SERVER_RECORDING_MERGE_PARTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/base/file_system.h"
#include "server/recording/merge.h"
#include "server/recording/merge_plan.h"

namespace hookline {

// The recordings to merge, once as the plan needs them and once as the merge does.
struct MergeParts {
  std::vector<MergePart> manifests;
  std::vector<RecordingMerge::Part> parts;
};

// Each of `names` is the name of a recording in `root`; `FOLDER/NAME`, one in a folder of `shared`; or `*/NAME`, all of
// that name in folders of `shared`. Both directories must outlive the result; `shared` can be null. INVALID_ARGUMENT,
// naming `parts[i]`: a name has another form or has a folder without `shared`; or there are no parts, or more than
// kMaxParts. NOT_FOUND: no such recording. DATA_LOSS: its manifest cannot be read.
absl::StatusOr<MergeParts> FindMergeParts(Directory& root, Directory* shared, const std::vector<std::string>& names);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_MERGE_PARTS_H_
