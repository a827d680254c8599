// Token sequences from a file, one after another.
#ifndef HOOKLINE_CLIENT_CLI_TOKEN_FILE_H_
#define HOOKLINE_CLIENT_CLI_TOKEN_FILE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hookline::cli {

struct TokenFileOptions {
  std::string path;    // "-": standard input
  std::string format;  // "ids": numbers as text, one sequence a line; "npy"; "bytes": each byte of a text is a token;
                       // "": npy for names that end so, else ids
  int64_t sequence_length = 0;  // where streams of tokens are cut; required for them
  std::optional<uint32_t> prepend_token_id;
};

class TokenFile {
 public:
  // INVALID_ARGUMENT or what opening the file said.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const TokenFileOptions& options);
  virtual ~TokenFile() = default;

  // The next sequence, none at the end. INVALID_ARGUMENT naming the file and the place.
  virtual absl::StatusOr<std::optional<std::vector<uint32_t>>> Next() = 0;

  // All tokens, prepended ones included, where that is known before reading.
  virtual std::optional<int64_t> tokens() const { return std::nullopt; }
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TOKEN_FILE_H_
