// The checksums that a zip archive keeps of its entries. LibTorch's reader does not look at them.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ZIP_CHECKSUMS_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ZIP_CHECKSUMS_H_

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// From the central directory of `archive`: CRC-32 of each entry's contents by name, the name without its first folder
// (which is the archive's own name in PyTorch's files). FAILED_PRECONDITION: no directory at the end, one that points
// out of the archive, an entry twice.
absl::StatusOr<absl::flat_hash_map<std::string, uint32_t>> ZipChecksums(absl::string_view archive);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_ZIP_CHECKSUMS_H_
