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

// No model takes more ids at once. A message of one such sequence stays below gRPC's 4 MiB: an id takes up to 5 bytes.
inline constexpr int64_t kMaxSequenceIds = int64_t{1} << 19;

// The number of sequences whose first ids are compared: enough that they do not begin alike by chance.
inline constexpr int64_t kFirstSequences = 64;

// kArray: an array of ids, in NumPy's format or, if `array_type` is set, without a header.
enum class TokenFormat { kText, kArray, kBytes };

struct TokenSourceOptions {
  std::string path;  // `-`: standard input, for text and bytes
  TokenFormat format = TokenFormat::kText;
  std::string array_type;  // as in Dataset::Open; empty: the file's header has it
  // The ids of each sequence that is cut from a stream (bytes, 1-D arrays), without the prepended one. At least 1.
  int64_t sequence_length = 0;
  std::optional<uint32_t> prepend_token;  // put before each sequence
};

// Any thread may call Stop; the rest belongs to one thread at a time.
class TokenSource {
 public:
  // Errors name the file and, for text, the line.
  static absl::StatusOr<std::unique_ptr<TokenSource>> Open(const TokenSourceOptions& options);
  virtual ~TokenSource() = default;

  // Fills `sequence` with the next one; returns false at the end. CANCELLED after Stop; INVALID_ARGUMENT for input that
  // is not tokens, and for a file without tokens.
  absl::StatusOr<bool> Next(v1::TokenSequence* sequence);

  // Continues with sequence `index`, also after Stop. FAILED_PRECONDITION if the file cannot be read again or ends
  // before it.
  absl::Status SeekTo(int64_t index);

  // Replaces the index of a sequence in a server's error by the sequence's place in the file, for example "line 7 of
  // ids.txt"; returns other statuses unchanged. May read the file again to find the place; Next then needs a SeekTo.
  absl::Status NamePlace(const absl::Status& status);

  // Makes Next fail, including a call that is waiting.
  virtual void Stop() = 0;

  // Returns whether the first kFirstSequences sequences do not all begin with the same token, such as BOS; false before
  // Next has returned that many.
  bool lacks_first_token() const { return next_index_ >= kFirstSequences && first_ids_.size() > 1; }

  // Returns the number of ids that Next will give in all, if that is known beforehand.
  virtual std::optional<int64_t> total_ids() const = 0;

 protected:
  TokenSource(std::string name, std::optional<uint32_t> prepend_token)
      : name_(std::move(name)), prepend_token_(prepend_token) {}

  // Appends the next sequence's ids to `sequence`, which is empty or has the prepended token; returns false at the end.
  virtual absl::StatusOr<bool> Read(v1::TokenSequence* sequence) = 0;
  virtual absl::Status Rewind() = 0;
  // Returns the place in the file of the sequence that Read appended last, for example "line 7".
  virtual std::string LastPlace() const = 0;

  // Returns the number of ids with the prepended ones.
  int64_t TotalIds(int64_t ids, int64_t sequences) const { return ids + (prepend_token_.has_value() ? sequences : 0); }

 private:
  std::string PlaceOf(int64_t index);

  const std::string name_;  // of the file
  const std::optional<uint32_t> prepend_token_;
  int64_t next_index_ = 0;
  std::set<uint32_t> first_ids_;  // of the first kFirstSequences sequences, as far as they were read
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_TOKEN_SOURCE_H_
