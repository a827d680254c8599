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

// Encodes texts, each into one sequence of the answer.
using EncodeTexts = std::function<absl::StatusOr<v1::TokenizeResponse>(const std::vector<std::string>& texts)>;

struct TextFileOptions {
  std::string path;   // `-`: standard input
  std::string field;  // the field of each line's JSON object that is the text; empty: the line itself is
  std::optional<uint32_t> prepend_token;
};

// One text a line, in UTF-8; empty lines are skipped. Errors name the file and the line.
absl::StatusOr<std::unique_ptr<TokenSource>> OpenTextFile(const TextFileOptions& options, EncodeTexts encode);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_TEXT_FILE_H_
