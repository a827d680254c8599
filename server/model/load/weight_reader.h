// Reads the weights of a checkpoint into memory of the process, each once, and hashes them on the way.
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

// One thread at a time; inside, as many threads as LibTorch computes with share the work. `weights` must outlive it.
// Memory beyond that of the tensors it returns is some megabytes, and for a tensor that is not contiguous in its file
// what it spans.
class WeightReader {
 public:
  explicit WeightReader(const StateDict& weights);
  ~WeightReader();

  // The values of tensor `name`, which the checkpoint must have: contiguous, on the CPU, in `dtype`. Nothing that is
  // done to the file afterwards changes them. FAILED_PRECONDITION naming file and tensor: the file was cut short or
  // does not have the checksum that it gives.
  absl::StatusOr<at::Tensor> Read(const std::string& name, at::ScalarType dtype);

  // Turns a piece of a tensor's stored bytes, the one that begins at byte `begin`, into its part of `values`. Pieces
  // begin at multiples of 1 MiB and come in any order, from several threads at once.
  using DecodePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes, at::Tensor& values)>;

  // The values, of `sizes` and `dtype`, that `decode` makes of the bytes of tensor `name`, which are never in memory as
  // a whole unless they are not contiguous in the file. Otherwise as Read.
  absl::StatusOr<at::Tensor> Decode(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype,
                                    DecodePiece decode);

  // Reads what was not read yet, for its hash only, and makes sure that no file changed since it was opened: errors as
  // above, and of InputFile::CheckUnchanged. 32 hexadecimal digits: XXH3-128 over each tensor's name, dtype, shape and
  // bytes (as stored, row-major) in the order of names, and over `configuration`.
  absl::StatusOr<std::string> Finish(absl::string_view configuration);

 private:
  // Gets a piece of a tensor as DecodePiece does.
  using UsePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes)>;

  // Reads `tensor` into `values`, of its sizes and contiguous, or only hashes it where that is null.
  absl::Status ReadInto(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash);
  // Reads a contiguous tensor in pieces; to `into` where that is not null, which has room for all of it.
  absl::Status ReadPieces(const StoredTensor& tensor, uint8_t* into, UsePiece use, Xxh3::Hash* hash);
  // The same for what cannot be used piece by piece.
  absl::Status ReadAtOnce(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash);
  // Makes sure that `range` has its checksum, unless that was done before.
  absl::Status CheckRange(const StoredRange& range);

  const StateDict& weights_;
  const std::unique_ptr<ReadTeam> team_;
  absl::flat_hash_map<std::string, Xxh3::Hash> hashes_;  // by name
  // Ranges whose checksums were found right: file and offset.
  std::set<std::pair<const InputFile*, int64_t>> checked_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_READER_H_
