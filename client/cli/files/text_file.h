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

// The treatment of a text of more tokens than a sequence may have. With kLeave the server refuses it.
enum class LongTexts { kLeave, kTruncate, kSplit };

struct TextFileOptions {
  std::string path;   // `-`: standard input
  std::string field;  // the field of each line's JSON object that is the text; empty: the line itself is
  std::optional<uint32_t> prepend_token;
  LongTexts long_texts = LongTexts::kLeave;
  int64_t max_ids = 0;  // of a sequence, without the prepended one; for all but kLeave
};

// One text a line, in UTF-8; empty lines are skipped. A text that is cut has the special tokens that were added to it
// in each part. Errors name the file and the line.
absl::StatusOr<std::unique_ptr<TokenSource>> OpenTextFile(const TextFileOptions& options, EncodeTexts encode);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_TEXT_FILE_H_
