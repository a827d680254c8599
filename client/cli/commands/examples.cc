#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/files/latent_files.h"
#include "client/cli/files/scratch_file.h"
#include "client/cli/terminal/json_line.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/report.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/dictionary_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(The server runs the dataset once. For each latent it keeps the tokens at which the latent is largest, each with
the tokens around it, and counts the tokens at which the latent is above 0.

Examples:
  Latents 10 to 20 of a dictionary that the server was started with:
    hookline examples sae --dataset pile --sequence-length 256 --latents 10-20 --top 20
  The same, resumable after an interruption, with files for delphi and SAEDashboard:
    hookline examples sae --dataset pile --sequence-length 256 --latents 10-20 --checkpoint sae.checkpoint \
      --delphi latents --sae-dashboard sae.json)";

// The most latents that a list can name: far more than a server takes in one request.
constexpr int64_t kMaxLatents = 1 << 20;
// A checkpoint is at most this large (TopActivationsRequest.context); other files are not read into memory.
constexpr uintmax_t kMaxCheckpointBytes = uintmax_t{4} << 20;

struct ExamplesFlags {
  std::string dictionary;
  std::string dataset;
  int64_t sequence_length = 0, first_sequence = 0, sequence_count = 0;
  std::optional<uint32_t> prepend_token;
  std::string latents;
  int32_t top = 20;
  int32_t context = 32;
  std::vector<uint32_t> ignore_tokens;
  std::string checkpoint;
  int64_t checkpoint_sequences = 1000;
  std::string delphi, sae_dashboard;
  bool json = false, quiet = false;
};

// Parses a list such as "10-20,33".
absl::Status ParseLatents(const std::string& list, v1::TopActivationsRequest& request) {
  for (absl::string_view part : absl::StrSplit(list, ',')) {
    const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(part, absl::MaxSplits('-', 1));
    int32_t first = 0, last = 0;
    const bool is_range = part.find('-') != absl::string_view::npos;
    if (!absl::SimpleAtoi(ends.first, &first) || !absl::SimpleAtoi(is_range ? ends.second : ends.first, &last) ||
        first > last) {
      return absl::InvalidArgumentError(
          absl::StrCat("--latents: `", Escaped(part), "` is not a latent or a range such as 10-20"));
    }
    if (int64_t{last} - first >= kMaxLatents - request.latents_size()) {
      return absl::InvalidArgumentError(absl::StrCat("--latents: names more than ", kMaxLatents, " latents"));
    }
    for (int32_t latent = first; latent <= last; ++latent) request.add_latents(latent);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::TopActivationsRequest> MakeRequest(const ExamplesFlags& flags) {
  v1::TopActivationsRequest request;
  request.set_dictionary(flags.dictionary);
  RETURN_IF_ERROR(ParseLatents(flags.latents, request));
  request.set_top(flags.top);
  request.set_context(flags.context);
  *request.mutable_ignore_token_ids() = {flags.ignore_tokens.begin(), flags.ignore_tokens.end()};
  request.set_checkpoint_sequences(flags.checkpoint_sequences);
  v1::DatasetSource& dataset = *request.mutable_dataset();
  dataset.set_name(flags.dataset);
  dataset.set_sequence_length(static_cast<int32_t>(flags.sequence_length));
  dataset.set_first_sequence(flags.first_sequence);
  dataset.set_sequence_count(flags.sequence_count);
  if (flags.prepend_token.has_value()) dataset.set_prepend_token_id(*flags.prepend_token);
  if (flags.checkpoint.empty()) return request;
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(flags.checkpoint, error);
  if (error == std::errc::no_such_file_or_directory) return request;
  std::ifstream file(flags.checkpoint, std::ios::binary);
  const bool is_read = !error && bytes <= kMaxCheckpointBytes && request.mutable_resume()->ParseFromIstream(&file);
  if (!is_read || request.resume().digest().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--checkpoint ", flags.checkpoint, ": is not a checkpoint of this command; name another file"));
  }
  return request;
}

absl::Status WriteCheckpoint(const v1::TopActivationsCheckpoint& checkpoint, const std::string& path) {
  const std::filesystem::path place(path);
  const std::string directory = place.has_parent_path() ? place.parent_path().string() : ".";
  const std::string bytes = checkpoint.SerializeAsString();
  ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFile> file,
                   ScratchFile::Create(TemporaryPath(directory, place.filename().string())));
  RETURN_IF_ERROR(file->Append(bytes.data(), static_cast<int64_t>(bytes.size())));
  RETURN_IF_ERROR(file->Sync());
  return file->Keep(path);
}

// Returns each example's context as text with the example's token in brackets, or as ids if there is no tokenizer.
absl::StatusOr<std::vector<std::string>> Contexts(const v1::LatentActivations& latent, const std::string& model,
                                                  client::Client& client) {
  v1::DetokenizeRequest request;
  request.set_model(model);
  std::vector<std::string> ids;
  for (const v1::LatentExample& example : latent.examples()) {
    const int at = example.position() - example.first_position();
    std::vector<std::string> words;
    v1::TokenSequence* parts[] = {request.add_sequences(), request.add_sequences(), request.add_sequences()};
    for (int t = 0; t < example.token_ids_size(); ++t) {
      parts[t < at ? 0 : t == at ? 1 : 2]->add_ids(example.token_ids(t));
      words.push_back(t == at ? absl::StrCat("[", example.token_ids(t), "]") : absl::StrCat(example.token_ids(t)));
    }
    ids.push_back(absl::StrJoin(words, " "));
  }
  const absl::StatusOr<v1::DetokenizeResponse> texts = client.Detokenize(request);
  if (absl::IsFailedPrecondition(texts.status())) return ids;
  RETURN_IF_ERROR(texts.status());
  std::vector<std::string> contexts;
  for (int i = 0; i + 2 < texts->texts_size(); i += 3) {
    contexts.push_back(Escaped(absl::StrCat(texts->texts(i), "[", texts->texts(i + 1), "]", texts->texts(i + 2))));
  }
  return contexts;
}

absl::Status Print(const LatentResult& result, client::Client& client) {
  const int64_t tokens = result.summary.tokens() - result.summary.ignored_tokens();
  for (const v1::LatentActivations& latent : result.latents) {
    std::string text =
        absl::StrFormat("latent %d: above 0 at %d of %d tokens", latent.latent(), latent.firings(), tokens);
    for (const v1::LatentQuantile& one : latent.quantiles()) {
      absl::StrAppend(&text, &one == &latent.quantiles(0) ? "; quantiles " : ", ",
                      absl::StrFormat("%g%%: %.4g", 100 * one.share(), one.value()));
    }
    std::fputs((text + "\n").c_str(), stdout);
    if (latent.examples_size() == 0) continue;
    ASSIGN_OR_RETURN(const std::vector<std::string> contexts,
                     Contexts(latent, result.started.dictionary().model(), client));
    std::vector<std::vector<std::string>> rows = {{"activation", "sequence", "position"}};
    for (const v1::LatentExample& example : latent.examples()) {
      rows.push_back({absl::StrFormat("%.4f", example.activation()), absl::StrCat(example.sequence()),
                      absl::StrCat(example.position())});
    }
    // The context comes last and is not padded, because it is long.
    const std::vector<std::string> lines = absl::StrSplit(Table(rows), '\n');
    for (size_t i = 0; i < rows.size(); ++i) {
      std::fputs(absl::StrCat(lines[i], "  ", i == 0 ? "context" : contexts[i - 1], "\n").c_str(), stdout);
    }
    std::fputs("\n", stdout);
  }
  return absl::OkStatus();
}

absl::Status Read(grpc::ClientReader<v1::TopActivationsResponse>& reader, const ExamplesFlags& flags,
                  LatentResult* result) {
  Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle(), "sequences");
  v1::TopActivationsResponse response;
  while (reader.Read(&response)) {
    if (response.has_started()) {
      result->started = response.started();
      progress.SetTotal(response.started().sequences());
      progress.SetBefore(response.started().resumed_sequences(), 0);
    } else if (response.has_checkpoint()) {
      progress.Set(response.checkpoint().sequences(), 0);
      if (!flags.checkpoint.empty()) RETURN_IF_ERROR(WriteCheckpoint(response.checkpoint(), flags.checkpoint));
    } else if (response.has_latent()) {
      result->latents.push_back(response.latent());
    } else if (response.has_summary()) {
      result->summary = response.summary();
      progress.Set(response.summary().sequences(), 0);
    }
    if (flags.json && !response.has_checkpoint()) PrintJsonLine(response);
  }
  return absl::OkStatus();
}

absl::Status Run(const ExamplesFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const v1::TopActivationsRequest request, MakeRequest(flags));
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
  grpc::ClientContext context;
  Interrupt::Listener listener(&interrupt, [&context] { context.TryCancel(); });
  LatentResult result;
  result.dataset = flags.dataset;
  const auto reader = v1::DictionaryService::NewStub(client->channel())->TopActivations(&context, request);
  const absl::Status written = Read(*reader, flags, &result);
  if (!written.ok()) context.TryCancel();
  const absl::Status status = client::FromGrpc(reader->Finish());
  RETURN_IF_ERROR(written);
  if (interrupt.came()) return absl::CancelledError("interrupted");
  if (!status.ok()) return ExplainUnavailable(status, server.address);
  if (!flags.delphi.empty()) RETURN_IF_ERROR(WriteDelphi(result, flags.delphi));
  if (!flags.sae_dashboard.empty()) RETURN_IF_ERROR(WriteSaeDashboard(result, flags.sae_dashboard));
  if (!flags.json) RETURN_IF_ERROR(ExplainUnavailable(Print(result, *client), server.address));
  // The answer holds everything that the checkpoint held.
  if (!flags.checkpoint.empty()) std::remove(flags.checkpoint.c_str());
  return absl::OkStatus();
}

void AddOptions(CLI::App& command, ExamplesFlags& flags) {
  command.add_option("DICTIONARY", flags.dictionary, "The dictionary's name (hookline hooks lists its hook points)")
      ->required();
  command.add_option("--dataset", flags.dataset, "A dataset that the server holds")->type_name("NAME")->required();
  command.add_option("--sequence-length", flags.sequence_length, "Tokens of each sequence cut from a stream")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  command.add_option("--prepend-token,--bos", flags.prepend_token, "A token id to put before each sequence")
      ->type_name("ID");
  command.add_option("--first-sequence", flags.first_sequence, "The dataset's first sequence to take [0]")
      ->type_name("N");
  command.add_option("--sequence-count", flags.sequence_count, "Number of sequences to take [all]")->type_name("N");
  command.add_option("--latents", flags.latents, "Latents and ranges of latents: 10-20,33")
      ->type_name("LIST")
      ->required();
  command.add_option("--top", flags.top, "Number of tokens to keep for each latent, the strongest")
      ->check(CLI::Range(1, 10000))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--context", flags.context, "Number of tokens to show around each, including itself")
      ->check(CLI::Range(1, 1024))
      ->type_name("N")
      ->capture_default_str();
  command
      .add_option("--ignore-tokens", flags.ignore_tokens,
                  "Token ids at which latents count as 0, for example the one that begins sequences")
      ->delimiter(',')
      ->type_name("ID,...");
  CLI::Option* checkpoint =
      command
          .add_option("--checkpoint", flags.checkpoint,
                      "A file that keeps the findings so far; if it exists, the work continues from it. It is "
                      "removed at the end")
          ->type_name("FILE");
  command.add_option("--checkpoint-sequences", flags.checkpoint_sequences, "Sequences between two checkpoints")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->needs(checkpoint)
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--delphi", flags.delphi, "A folder for the files that delphi's LatentDataset reads")
      ->type_name("FOLDER");
  command.add_option("--sae-dashboard", flags.sae_dashboard, "A file for SAEDashboard's SaeVisData to read")
      ->type_name("FILE.json");
  command.add_flag("--json", flags.json, "Print the server's answers as JSON, one a line");
  command.add_flag("--quiet", flags.quiet, "Show no progress");
}

}  // namespace

void AddExamplesCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("examples", "Finds the tokens of a dataset at which a dictionary's latents are largest");
  command->footer(kFooter);
  auto flags = std::make_shared<ExamplesFlags>();
  AddServerOption(*command, invocation);
  AddOptions(*command, *flags);
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
