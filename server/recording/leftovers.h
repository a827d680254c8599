// Looks after the files of a recording's directory: what no manifest names goes, and what it names must be there.
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

// DATA_LOSS, describing a shard that is missing, too short or too long.
absl::Status CheckLengths(Directory& directory, const Manifest& manifest);

// The same, and reads the last shard: DATA_LOSS also where it is not as it was written.
absl::Status CheckLastShard(Directory& directory, const Manifest& manifest);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_LEFTOVERS_H_
