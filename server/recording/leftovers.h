// Compares the files in a recording's directory with its manifest: leftovers are removed, and the files that the
// manifest names must exist.
#ifndef HOOKLINE_SERVER_RECORDING_LEFTOVERS_H_
#define HOOKLINE_SERVER_RECORDING_LEFTOVERS_H_

#include <initializer_list>

#include "absl/status/status.h"
#include "server/base/file_system.h"
#include "server/recording/manifest.h"

namespace hookline {

// Removes temporary files, and shards that none of `manifests` names. A file that cannot be removed stays; the next
// sweep finds it again.
void RemoveLeftovers(Directory& directory, std::initializer_list<const Manifest*> manifests);

// Returns DATA_LOSS, naming the shard, if one is missing, too short or too long.
absl::Status CheckLengths(Directory& directory, const Manifest& manifest);

// Does the same and reads the last shard: DATA_LOSS also if that has changed since it was written.
absl::Status CheckLastShard(Directory& directory, const Manifest& manifest);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_LEFTOVERS_H_
