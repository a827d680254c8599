#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/json_line.h"
#include "client/cli/terminal/report.h"
#include "client/cpp/client.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] = R"(Examples:
  The tokens of a text, one a line: position, id, token, and the characters that it covers:
    hookline tokenize "The cat sat"
  The ids alone, one text a line, as `hookline capture --tokens` reads them:
    hookline tokenize --ids "The cat sat" "on the mat"
  The text of ids:
    hookline tokenize --decode "464 3797 3332")";

struct TokenizeFlags {
  std::vector<std::string> texts;
  std::string model;
  std::string add_special_tokens = "default";
  bool ids = false;
  bool decode = false;
  bool json = false;
};

void PrintTokens(const v1::TokenizedText& text) {
  std::vector<std::vector<std::string>> rows = {{"position", "id", "token", "characters", "special"}};
  for (int i = 0; i < text.ids_size(); ++i) {
    rows.push_back({absl::StrCat(i), absl::StrCat(text.ids(i)), Escaped(text.tokens(i)),
                    absl::StrCat(text.starts(i), "-", text.ends(i)), text.special(i) ? "yes" : ""});
  }
  std::fputs(Table(rows).c_str(), stdout);
}

absl::Status Decode(const TokenizeFlags& flags, client::Client& client) {
  v1::DetokenizeRequest request;
  request.set_model(flags.model);
  if (flags.add_special_tokens != "default") request.set_skip_special_tokens(flags.add_special_tokens == "no");
  for (const std::string& text : flags.texts) {
    v1::TokenSequence* sequence = request.add_sequences();
    for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty())) {
      uint32_t id = 0;
      if (!absl::SimpleAtoi(word, &id)) {
        return absl::InvalidArgumentError(absl::StrCat("--decode: `", Escaped(word), "` is not a token id"));
      }
      sequence->add_ids(id);
    }
  }
  ASSIGN_OR_RETURN(const v1::DetokenizeResponse response, client.Detokenize(request));
  if (flags.json) {
    PrintJsonLine(response);
    return absl::OkStatus();
  }
  for (const std::string& text : response.texts()) std::fputs(absl::StrCat(text, "\n").c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Encode(const TokenizeFlags& flags, client::Client& client) {
  v1::TokenizeRequest request;
  request.set_model(flags.model);
  for (const std::string& text : flags.texts) request.add_texts(text);
  if (flags.add_special_tokens != "default") request.set_add_special_tokens(flags.add_special_tokens == "yes");
  ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client.Tokenize(request));
  if (flags.json) {
    PrintJsonLine(response);
    return absl::OkStatus();
  }
  for (const v1::TokenizedText& text : response.sequences()) {
    if (flags.ids) {
      std::fputs(absl::StrCat(absl::StrJoin(text.ids(), " "), "\n").c_str(), stdout);
    } else {
      PrintTokens(text);
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const TokenizeFlags& flags, const ServerChoice& server) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
  return ExplainUnavailable(flags.decode ? Decode(flags, *client) : Encode(flags, *client), server.address);
}

}  // namespace

void AddTokenizeCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("tokenize", "Shows the tokens into which the model's tokenizer cuts texts");
  command->footer(kFooter);
  auto flags = std::make_shared<TokenizeFlags>();
  AddServerOption(*command, invocation);
  command->add_option("TEXT", flags->texts, "The texts")->required();
  command->add_option("--model", flags->model, "The model's name; not needed if the server holds only one")
      ->type_name("NAME");
  command
      ->add_option("--add-special-tokens", flags->add_special_tokens,
                   "Add special tokens, such as the one that begins a document; with --decode, show them")
      ->check(CLI::IsMember({"default", "yes", "no"}))
      ->capture_default_str();
  CLI::Option* decode = command->add_flag("--decode", flags->decode, "Print the text of ids, which each TEXT holds");
  command->add_flag("--ids", flags->ids, "Print only ids")->excludes(decode);
  command->add_flag("--json", flags->json, "Print the answer as JSON");
  command->callback(
      [flags, &invocation] { invocation.run = [flags, &invocation] { return Run(*flags, invocation.server); }; });
}

}  // namespace hookline::cli
