#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/any_server.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/json_line.h"
#include "client/cli/terminal/report.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/dictionary_service.grpc.pb.h"
#include "hookline/v1/evaluation_service.grpc.pb.h"
#include "hookline/v1/tokenizer_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(One of --text, --tokens and --dataset gives the token sequences. Each line of the table is a token: the loss of
predicting it from the tokens before it, the same loss under each variant, and the tokens that the model expects next.

Examples:
  A text, as it is and with a dictionary's reconstruction in place of the rows:
    hookline score --text 'The cat sat' --dictionary sae
  The ids in a file, one sequence a line:
    hookline score --tokens ids.txt
  The same with the MLP output of a layer set to zero, for each of two layers:
    hookline score --tokens ids.txt --zero blocks.2.hook_mlp_out --zero blocks.3.hook_mlp_out
  A text for a byte-level model:
    hookline score --tokens text.txt --token-format bytes --sequence-length 64)";

// Stays below the 16 MiB that a server takes in one request of this kind.
constexpr size_t kMaxRequestBytes = size_t{8} << 20;

struct ScoreFlags : CaptureRequestFlags {
  std::vector<std::string> zero, dictionaries;
  int32_t top = 3;
  bool json = false;
};

absl::Status AddTokens(TokenSource& tokens, v1::ScoreRequest& request) {
  size_t bytes = 0;
  while (true) {
    v1::TokenSequence sequence;
    ASSIGN_OR_RETURN(const bool more, tokens.Next(&sequence));
    if (!more) return absl::OkStatus();
    bytes += sequence.ByteSizeLong();
    if (bytes > kMaxRequestBytes) {
      return absl::InvalidArgumentError(absl::StrCat("--tokens: more than ", kMaxRequestBytes >> 20,
                                                     " MiB of ids do not fit into one request; serve the file "
                                                     "as a dataset"));
    }
    *request.mutable_tokens()->add_sequences() = std::move(sequence);
  }
}

// Adds a variant that replaces rows by the dictionary's reconstruction, at the hook point that it reconstructs.
absl::Status AddDictionary(client::Client& client, const std::string& name, v1::ScoreRequest& request) {
  grpc::ClientContext context;
  v1::GetDictionaryRequest asked;
  asked.set_name(name);
  v1::Dictionary dictionary;
  RETURN_IF_ERROR(
      client::FromGrpc(v1::DictionaryService::NewStub(client.channel())->GetDictionary(&context, asked, &dictionary)));
  v1::ScoreVariant& variant = *request.add_variants();
  variant.set_name("dictionary " + name);
  v1::Intervention& intervention = *variant.add_interventions();
  intervention.set_hook_point(dictionary.output_hook_point());
  intervention.set_dictionary(name);
  return absl::OkStatus();
}

// The texts of tokens, for the table. For a model without a tokenizer, ids take the place of texts.
class TokenTexts {
 public:
  TokenTexts(client::Client& client, std::string model) : client_(client), model_(std::move(model)) {}

  // Asks the server for the texts of those tokens of the scores that are not known yet.
  void Learn(const std::vector<v1::Score>& scores) {
    if (!has_texts_) return;
    std::set<uint32_t> ids(scores.front().token_ids().begin(), scores.front().token_ids().end());
    for (const v1::TopLogits& top : scores.front().top_logits()) ids.insert(top.ids().begin(), top.ids().end());
    v1::DetokenizeRequest request;
    request.set_model(model_);
    request.set_skip_special_tokens(false);
    std::vector<uint32_t> asked;
    for (uint32_t id : ids) {
      if (texts_.count(id) != 0) continue;
      asked.push_back(id);
      request.add_sequences()->add_ids(id);
    }
    if (asked.empty()) return;
    grpc::ClientContext context;
    v1::DetokenizeResponse response;
    const auto stub = v1::TokenizerService::NewStub(client_.channel());
    has_texts_ =
        stub->Detokenize(&context, request, &response).ok() && response.texts_size() == static_cast<int>(asked.size());
    for (size_t i = 0; has_texts_ && i < asked.size(); ++i) texts_[asked[i]] = response.texts(static_cast<int>(i));
  }

  // Returns the text in quotes, or the id if the text is unknown.
  std::string operator()(uint32_t id) const {
    const auto found = texts_.find(id);
    return found == texts_.end() ? absl::StrCat(id) : absl::StrCat("'", Escaped(found->second), "'");
  }

 private:
  client::Client& client_;
  const std::string model_;
  bool has_texts_ = true;  // until a request for texts fails
  std::map<uint32_t, std::string> texts_;
};

// Returns "' sat' 41.2%" for each prediction, the most probable first.
std::string Predictions(const v1::TopLogits& top, const TokenTexts& texts) {
  std::string text;
  for (int i = 0; i < top.ids_size(); ++i) {
    const double percent = 100 * std::exp(static_cast<double>(top.log_probabilities(i)));
    absl::StrAppend(&text, i == 0 ? "" : "  ", absl::StrFormat("%s %.1f%%", texts(top.ids(i)), percent));
  }
  return text;
}

// Prints the scores of one sequence. The first are those of the clean pass.
void PrintSequence(const std::vector<v1::Score>& scores, const TokenTexts& texts) {
  const v1::Score& clean = scores.front();
  std::vector<std::vector<std::string>> rows = {{"position", "token", "loss"}};
  for (size_t v = 1; v < scores.size(); ++v) rows[0].push_back(Escaped(scores[v].variant()));
  if (clean.top_logits_size() > 0) rows[0].push_back("next");
  for (int t = 0; t < clean.token_ids_size(); ++t) {
    std::vector<std::string>& row = rows.emplace_back();
    row.push_back(absl::StrCat(t));
    row.push_back(texts(clean.token_ids(t)));
    for (const v1::Score& score : scores) {
      row.push_back(t == 0 ? "" : absl::StrFormat("%.4f", score.token_loss(t - 1)));
    }
    if (clean.top_logits_size() > 0) row.push_back(Predictions(clean.top_logits(t), texts));
  }
  std::fputs(absl::StrCat("sequence ", clean.sequence(), "\n", Table(rows), "\n").c_str(), stdout);
}

std::string SummaryText(const v1::ScoreSummary& summary) {
  std::vector<std::vector<std::string>> rows = {{"variant", "mean loss", "mean KL", "predictions"}};
  for (const v1::VariantSummary& variant : summary.variants()) {
    rows.push_back({variant.name().empty() ? "(clean)" : Escaped(variant.name()),
                    variant.has_mean_loss() ? absl::StrFormat("%.4f", variant.mean_loss()) : "",
                    variant.has_mean_kl() ? absl::StrFormat("%.4f", variant.mean_kl()) : "",
                    absl::StrCat(variant.tokens())});
  }
  return Table(rows);
}

// Prints responses as they come. Scores of a sequence wait until those of all its variants are there.
class Printer {
 public:
  Printer(client::Client& client, const v1::ScoreRequest& request, bool as_json)
      : variants_(request.variants_size()), as_json_(as_json), texts_(client, request.model()) {}

  void Print(const v1::ScoreResponse& response) {
    if (as_json_) return PrintJsonLine(response);
    if (response.has_score()) {
      std::vector<v1::Score>& scores = waiting_[response.score().sequence()];
      scores.push_back(response.score());
      if (static_cast<int>(scores.size()) <= variants_) return;
      texts_.Learn(scores);
      PrintSequence(scores, texts_);
      waiting_.erase(response.score().sequence());
    }
    if (response.has_summary()) std::fputs(SummaryText(response.summary()).c_str(), stdout);
  }

 private:
  const int variants_;
  const bool as_json_;
  TokenTexts texts_;
  std::map<int64_t, std::vector<v1::Score>> waiting_;
};

absl::Status Run(const ScoreFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  v1::ScoreRequest request;
  request.set_model(flags.model);
  request.mutable_outputs()->set_per_token_loss(true);
  request.mutable_outputs()->set_kl(!flags.zero.empty() || !flags.dictionaries.empty());
  request.mutable_outputs()->set_top_logits(flags.top);
  for (const std::string& hook_point : flags.zero) {
    v1::ScoreVariant& variant = *request.add_variants();
    variant.set_name("zero " + hook_point);
    v1::Intervention& intervention = *variant.add_interventions();
    intervention.set_hook_point(hook_point);
    intervention.mutable_zero();
  }
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
  for (const std::string& name : flags.dictionaries) {
    absl::Status status = AddDictionary(*client, name, request);
    if (!status.ok()) return ExplainUnavailable(status, server.address);
  }
  AnyServer any({client.get()});
  ASSIGN_OR_RETURN(const std::unique_ptr<TokenSource> tokens, OpenTokens(flags, any, server.address));
  if (tokens != nullptr) {
    RETURN_IF_ERROR(AddTokens(*tokens, request));
  } else {
    ASSIGN_OR_RETURN(const v1::CaptureRequest source, MakeCaptureRequest(flags));
    if (source.has_text()) {
      *request.mutable_text() = source.text();
    } else {
      *request.mutable_dataset() = source.dataset();
    }
  }
  grpc::ClientContext context;
  Interrupt::Listener listener(&interrupt, [&context] { context.TryCancel(); });
  const auto reader = v1::EvaluationService::NewStub(client->channel())->Score(&context, request);
  Printer printer(*client, request, flags.json);
  v1::ScoreResponse response;
  while (reader->Read(&response)) printer.Print(response);
  const absl::Status status = client::FromGrpc(reader->Finish());
  if (interrupt.came()) return absl::CancelledError("interrupted");
  if (tokens != nullptr && absl::IsInvalidArgument(status)) return tokens->NamePlace(status);
  return ExplainUnavailable(status, server.address);
}

}  // namespace

void AddScoreCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("score", "Prints each token's loss, and how interventions change it");
  command->footer(kFooter);
  auto flags = std::make_shared<ScoreFlags>();
  AddServerOption(*command, invocation);
  AddSourceOptions(*command, *flags);
  command->add_option("--zero", flags->zero, "A variant in which this hook point's rows are zero. Repeatable")
      ->type_name("HOOK")
      ->allow_extra_args(false);
  command
      ->add_option("--dictionary", flags->dictionaries,
                   "A variant in which a dictionary of the server reconstructs its hook point's rows. Repeatable")
      ->type_name("NAME")
      ->allow_extra_args(false);
  command->add_option("--top", flags->top, "Number of the most probable next tokens to print")
      ->check(CLI::Range(0, 100))
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print the server's answers as JSON, one a line");
  command->callback([flags, &invocation] {
    RequireSource(*flags);
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
