// Reads the weights of a checkpoint into memory, each once, and hashes them on the way.
//
//   WeightReader reader(state_dict);
//   ASSIGN_OR_RETURN(at::Tensor query, reader.Read("layers.0.q.weight", at::kBFloat16));
//   ...
//   ASSIGN_OR_RETURN(std::string fingerprint, reader.Finish(config.ToString()));
#ifndef HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_READER_H_
#define HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_READER_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/hash.h"
#include "server/model/load/state_dict.h"

namespace hookline {

class ReadTeam;

// Used by one thread at a time; inside, the work is shared by as many threads as LibTorch uses. `weights` must outlive
// the reader. Beside the tensors that it returns, the reader takes some megabytes, and for a tensor that is not
// contiguous in its file the bytes that the tensor spans there.
class WeightReader {
 public:
  explicit WeightReader(const StateDict& weights);
  ~WeightReader();

  // Returns the values of tensor `name`, which the checkpoint must have: contiguous, on the CPU, in `dtype`. Later
  // changes of the file do not affect them. FAILED_PRECONDITION naming file and tensor: the file was cut short or does
  // not match its checksum.
  absl::StatusOr<at::Tensor> Read(const std::string& name, at::ScalarType dtype);

  // Turns the piece of a tensor's stored bytes that begins at byte `begin` into its part of `values`. Pieces begin at
  // multiples of 1 MiB and come in any order, from several threads at once.
  using DecodePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes, at::Tensor& values)>;

  // Returns the values, of `sizes` and `dtype`, that `decode` computes from the bytes of tensor `name`. The bytes are
  // never in memory as a whole unless they are not contiguous in the file. Otherwise the same as Read.
  absl::StatusOr<at::Tensor> Decode(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype,
                                    DecodePiece decode);

  // Reads the tensors that were not yet read, only to hash them, and makes sure that no file changed since it was
  // opened. Errors: as above, and those of InputFile::CheckUnchanged. Returns 32 hexadecimal digits: XXH3-128 over each
  // tensor's name, dtype, shape and bytes (as stored, row-major) in the order of names, and over `configuration`.
  absl::StatusOr<std::string> Finish(absl::string_view configuration);

 private:
  // Receives a piece of a tensor, as in DecodePiece.
  using UsePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes)>;

  // Reads `tensor` into `values`, contiguous and of the same sizes; if `values` is null, only hashes the tensor.
  absl::Status ReadInto(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash);
  // Reads a contiguous tensor in pieces; into `into`, with room for all of it, unless that is null.
  absl::Status ReadPieces(const StoredTensor& tensor, uint8_t* into, UsePiece use, Xxh3::Hash* hash);
  // The same for a tensor that cannot be used piece by piece.
  absl::Status ReadAtOnce(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash);
  // Makes sure, once for each range, that `range` matches its checksum.
  absl::Status CheckRange(const StoredRange& range);

  const StateDict& weights_;
  const std::unique_ptr<ReadTeam> team_;
  absl::flat_hash_map<std::string, Xxh3::Hash> hashes_;  // by name
  // Ranges whose checksums were verified: file and offset.
  std::set<std::pair<const InputFile*, int64_t>> checked_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_READER_H_
