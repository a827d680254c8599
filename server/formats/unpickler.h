// Reads the pickle of a state dict, or of a tiktoken.Encoding: it knows the opcodes that those use (pickletools.py of
// Python 3.11 describes them), and none that could run code.
#ifndef HOOKLINE_SERVER_FORMATS_UNPICKLER_H_
#define HOOKLINE_SERVER_FORMATS_UNPICKLER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/formats/pickled_tensor.h"

namespace hookline {

// A state dict of a hundred thousand tensors takes about ten megabytes.
constexpr size_t kMaxPickleBytes = size_t{16} << 20;

// Returns the tensors of the dict or OrderedDict, from names to tensors, that `pickle` holds, in its order. Memory
// stays proportional to the pickle's size. FAILED_PRECONDITION, with a sentence that says what is wrong with
// the pickle.
absl::StatusOr<std::vector<PickledTensor>> UnpickleStateDict(absl::Span<const uint8_t> pickle);

// The part before the storages in a file that torch.save wrote before PyTorch 1.6, or without its zip format.
struct LegacyHead {
  std::vector<PickledTensor> tensors;
  std::vector<std::string> storage_keys;  // in the order in which the storages follow
  size_t bytes = 0;                       // the size of the head
};

// Returns whether `file` begins like a legacy file.
bool IsLegacyFile(absl::Span<const uint8_t> file);

// Reads the head at the beginning of `file`, of which the first kMaxPickleBytes are enough. Errors as above.
absl::StatusOr<LegacyHead> UnpickleLegacyHead(absl::Span<const uint8_t> file);

// A tiktoken.Encoding, as nanochat's tokenizer.pkl holds it.
struct PickledEncoding {
  std::string name;
  std::string pattern;
  std::vector<std::pair<std::string, uint32_t>> ranks;           // bytes and id
  std::vector<std::pair<std::string, uint32_t>> special_tokens;  // spelling and id
};

// Reads a pickled Encoding. Errors are those of UnpickleStateDict.
absl::StatusOr<PickledEncoding> UnpickleEncoding(absl::Span<const uint8_t> pickle);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_UNPICKLER_H_
