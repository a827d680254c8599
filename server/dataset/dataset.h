// A token dataset that the server holds: token ids in a file, which stays open and is read as needed.
//
//   ASSIGN_OR_RETURN(auto dataset, Dataset::Open("pile", "pile.npy"));
//   ASSIGN_OR_RETURN(Dataset::Cut cut, dataset->CutInto(1024));
//   RETURN_IF_ERROR(dataset->ReadSequence(0, vocabulary_size, absl::MakeSpan(ids)));   // ids.size() == 1024
//
// If the file is changed while it is held, reads give an error instead of ids. If another file is renamed over it,
// reads continue from the old one.
//
// A file has NumPy's format (1.0 to 3.0, C order; 1-D: a stream of tokens, 2-D: one sequence a row) of uint8, uint16,
// int32, uint32, int64 or uint64, little-endian, and is recognized by its beginning. Or it is flat: a stream of one of
// these types, which is declared after the path as in `tokens.bin:uint16`; llm.c's header is skipped. A file that
// begins like one of another format, or is named .npy but is not one, is refused.
#ifndef HOOKLINE_SERVER_DATASET_DATASET_H_
#define HOOKLINE_SERVER_DATASET_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"

namespace hookline {

enum class TokenDtype { kUint8, kUint16, kInt32, kUint32, kInt64, kUint64 };

// `uint8`, `uint16`, `int32`, `uint32`, `int64`, `uint64`.
absl::string_view TokenDtypeName(TokenDtype dtype);

// Immutable, and so thread-safe.
class Dataset {
 public:
  // `source` is PATH or PATH:DTYPE. Reads every id once, to find the largest and the fingerprint. Does not wait for the
  // writer of a pipe. Errors: those of OpenFile; FAILED_PRECONDITION for a file of another form or without tokens, or
  // with an id that is negative or does not fit 32 bits (its place is named); DATA_LOSS for a file that changes
  // meanwhile or cannot be read; INVALID_ARGUMENT for a flat file without a type, or a NumPy file with one.
  static absl::StatusOr<std::unique_ptr<const Dataset>> Open(std::string name, absl::string_view source);

  const std::string& name() const { return name_; }
  TokenDtype dtype() const { return dtype_; }
  int64_t tokens() const { return tokens_; }
  // Returns the tokens in a row of a 2-D file; 0 for a stream.
  int64_t row_length() const { return row_length_; }
  uint32_t largest_token_id() const { return largest_token_id_; }
  // Returns 16 hexadecimal digits, equal for files with the same tokens in the same form.
  const std::string& fingerprint() const { return fingerprint_; }

  // Returns the length of sequences for a request's `sequence_length`, and their number. A stream is cut into sequences
  // of `sequence_length` tokens, and a partial last one is dropped. INVALID_ARGUMENT (field `sequence_length`): for a
  // stream, below 1 or more than all tokens; for rows, neither 0 nor the row length.
  struct Cut {
    int64_t sequence_length = 0;
    int64_t sequence_count = 0;
  };
  absl::StatusOr<Cut> CutInto(int64_t sequence_length) const;

  // Reads sequence `index` of those that have `ids.size()` tokens, from the disk if the system does not hold it in
  // memory. `index` must be below CutInto's count. DATA_LOSS, naming the file: it cannot be read or is not what it was
  // when it was opened (its size or time differs, or it holds an id that is not below `vocabulary_size`). The contents
  // of `ids` are then undefined.
  absl::Status ReadSequence(int64_t index, int64_t vocabulary_size, absl::Span<uint32_t> ids) const;

 private:
  Dataset() = default;

  // Sets dtype_, row_length_, tokens_ and data_offset_ from the start of a file in NumPy's format.
  absl::Status ReadNpyForm(absl::Span<const uint8_t> start);
  // Sets the same from the start of a flat file of tokens of `dtype`.
  absl::Status ReadFlatForm(TokenDtype dtype, absl::Span<const uint8_t> start);
  // Sets largest_token_id_ and fingerprint_.
  absl::Status ReadAllTokens();
  // Returns DATA_LOSS unless the file's size and time are those of its opening.
  absl::Status CheckUnchanged() const;

  std::string name_;
  std::unique_ptr<const ReadableFile> file_;
  FileFacts facts_;          // when it was opened
  int64_t data_offset_ = 0;  // of the first token
  TokenDtype dtype_ = TokenDtype::kUint16;
  int64_t tokens_ = 0;
  int64_t row_length_ = 0;
  uint32_t largest_token_id_ = 0;
  std::string fingerprint_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_DATASET_DATASET_H_
