// Token sequences from a file of texts, which the server's tokenizer encodes.
#ifndef HOOKLINE_CLIENT_CLI_FILES_TEXT_FILE_H_
#define HOOKLINE_CLIENT_CLI_FILES_TEXT_FILE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/files/token_source.h"
#include "hookline/v1/tokenizer_service.pb.h"

namespace hookline::cli {

// Encodes texts, each into one entry of the answer.
using EncodeTexts = std::function<absl::StatusOr<v1::TokenizeResponse>(const std::vector<std::string>& texts)>;

// The treatment of a text of more tokens than a sequence can have. With kLeave, the server refuses the text.
enum class LongTexts { kLeave, kTruncate, kSplit };

struct TextFileOptions {
  std::string path;   // `-`: standard input
  std::string field;  // the field of each line's JSON object that holds the text; empty: the line is the text
  std::optional<uint32_t> prepend_token;
  LongTexts long_texts = LongTexts::kLeave;
  int64_t max_ids = 0;  // of a sequence, without the prepended one; kLeave ignores it
};

// Opens a file with one UTF-8 text on each line; empty lines are skipped. If a text is cut, each part has the special
// tokens that were added to the text. Errors name the file and the line.
absl::StatusOr<std::unique_ptr<TokenSource>> OpenTextFile(const TextFileOptions& options, EncodeTexts encode);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_TEXT_FILE_H_
