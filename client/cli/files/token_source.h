// Token sequences from a file: ids as text, arrays of ids, or the bytes of a text.
#ifndef HOOKLINE_CLIENT_CLI_FILES_TOKEN_SOURCE_H_
#define HOOKLINE_CLIENT_CLI_FILES_TOKEN_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hookline/v1/types.pb.h"

namespace hookline::cli {

// No model takes more ids at once, and a message of one sequence of so many stays below gRPC's 4 MiB, an id
// taking up to 5 bytes.
inline constexpr int64_t kMaxSequenceIds = int64_t{1} << 19;

// Sequences whose first ids are looked at: enough that they do not begin alike by chance, and quickly read.
inline constexpr int64_t kFirstSequences = 64;

// kArray: an array of ids, in NumPy's format or, where `array_type` says the type, without a header.
enum class TokenFormat { kText, kArray, kBytes };

struct TokenSourceOptions {
  std::string path;  // `-`: standard input, for text and bytes
  TokenFormat format = TokenFormat::kText;
  std::string array_type;  // as Dataset::Open takes it; empty: the file's header says it
  // Ids of a sequence that is cut from a stream, without the prepended one: bytes, and 1-D arrays. At least 1.
  int64_t sequence_length = 0;
  std::optional<uint32_t> prepend_token;  // put before each sequence
};

// Any thread may call Stop; the rest belongs to one thread at a time.
class TokenSource {
 public:
  // Errors name the file, and for text the line.
  static absl::StatusOr<std::unique_ptr<TokenSource>> Open(const TokenSourceOptions& options);
  virtual ~TokenSource() = default;

  // Fills `sequence` with the next one; false at the end. CANCELLED after Stop, INVALID_ARGUMENT for what are no
  // tokens, and for a file without any.
  absl::StatusOr<bool> Next(v1::TokenSequence* sequence);

  // Continues with sequence `index`, also after Stop. FAILED_PRECONDITION if the file cannot be read again or has
  // fewer.
  absl::Status SeekTo(int64_t index);

  // A server's error about a sequence that Next gave, which names it by its index, with its place in the file instead,
  // for example "line 7 of ids.txt"; any other status as it is. Reads the file again where only that tells the place,
  // after which Next needs a SeekTo.
  absl::Status NamePlace(const absl::Status& status);

  // Makes Next fail, also one that waits.
  virtual void Stop() = 0;

  // Returns whether no token stands first in all of the first kFirstSequences sequences, as BOS would; false before
  // Next has given that many.
  bool lacks_first_token() const { return next_index_ >= kFirstSequences && first_ids_.size() > 1; }

  // All ids that Next will give, where that is known beforehand.
  virtual std::optional<int64_t> total_ids() const = 0;

 protected:
  TokenSource(std::string name, std::optional<uint32_t> prepend_token)
      : name_(std::move(name)), prepend_token_(prepend_token) {}

  // Appends ids to the empty or prepended-to `sequence`.
  virtual absl::StatusOr<bool> Read(v1::TokenSequence* sequence) = 0;
  virtual absl::Status Rewind() = 0;
  // The place in the file of the sequence that Read appended last, for example "line 7".
  virtual std::string LastPlace() const = 0;

  // This counts what is prepended.
  int64_t TotalIds(int64_t ids, int64_t sequences) const { return ids + (prepend_token_.has_value() ? sequences : 0); }

 private:
  std::string PlaceOf(int64_t index);

  const std::string name_;  // of the file
  const std::optional<uint32_t> prepend_token_;
  int64_t next_index_ = 0;
  std::set<uint32_t> first_ids_;  // of the first kFirstSequences sequences, as far as they were given
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_TOKEN_SOURCE_H_
