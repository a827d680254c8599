#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/capture_run.h"
#include "client/cli/commands.h"
#include "client/cli/names.h"
#include "client/cli/report.h"
#include "client/cli/row_files.h"
#include "client/cli/token_source.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kDescription[] = "Captures the rows of hook points and writes one safetensors file for each";

constexpr char kFooter[] =
    R"(One of --tokens and --dataset says where the token sequences come from.

Examples:
  Every residual stream of the ids in a file (one sequence a line), 100000 rows of each:
    hookline capture --hook-points 'blocks.*.hook_resid_post' --tokens ids.txt --max-activations 100000 --out rows
  A text for a byte-level model whose documents begin with token 256, in sequences of 255 bytes and that token:
    hookline capture --hook-points blocks.2.hook_mlp_out --tokens book.txt --token-format bytes --prepend-token 256 --out rows
  A dataset that the server holds, in bfloat16, without the first position, saying where each row comes from:
    hookline capture --hook-points blocks.2.hook_mlp_out --dataset pile --sequence-length 1024 --skip-first 1 \
        --dtype bfloat16 --provenance --out rows
  Statistics only:
    hookline capture --hook-points '*' --tokens ids.npy --max-activations 1000

Files are named after their hook points; the tensor inside and the metadata carry the exact name. With --provenance each
file also holds provenance/sequence, provenance/position and provenance/token_id. Files appear when they are whole: a
capture that fails or is interrupted leaves none.

If the server goes away the capture continues where it was once the server is back, for about a minute (tokens from
standard input cannot be sent again, so then it fails).)";

struct CaptureFlags {
  std::string model;
  std::vector<std::string> hook_points;
  std::string tokens;
  std::string token_format = "auto";
  std::string dataset;
  std::string feed;
  int64_t sequence_length = 0;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  int64_t feed_members = 1;
  std::string feed_on_lag = "detach";
  std::optional<uint32_t> prepend_token;
  std::optional<int64_t> max_activations;
  std::vector<std::string> max_activations_for;
  std::string dtype = "float32";
  int32_t skip_first = 0;
  int32_t position_end = 0;
  int32_t position_stride = 1;
  std::vector<uint32_t> exclude_tokens;
  int32_t sample_rows = 0;
  uint64_t seed = 0;
  bool provenance = false;
  bool deterministic = false;
  std::string out;
  bool overwrite = false;
  bool json = false;
  bool quiet = false;
};

absl::StatusOr<v1::CaptureRequest> MakeRequest(const CaptureFlags& flags) {
  v1::CaptureRequest request;
  request.set_model(flags.model);
  for (const std::string& list : flags.hook_points) {
    for (const std::string& name : SplitHookPoints(list)) request.add_hook_points(name);
  }
  if (flags.max_activations.has_value()) request.set_max_activations(*flags.max_activations);
  for (const std::string& entry : flags.max_activations_for) {
    const size_t equals = entry.rfind('=');
    int64_t rows = 0;
    if (equals == std::string::npos || !absl::SimpleAtoi(entry.substr(equals + 1), &rows)) {
      return absl::InvalidArgumentError(absl::StrCat("--max-activations-for: `", entry, "` is not NAME=ROWS"));
    }
    if (!request.mutable_max_activations_by_hook_point()->insert({entry.substr(0, equals), rows}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--max-activations-for: ", entry.substr(0, equals), " is given twice"));
    }
  }
  request.set_dtype(Dtypes().at(flags.dtype));
  request.set_provenance(flags.provenance);
  request.set_deterministic(flags.deterministic);
  v1::Selection selection;
  selection.set_skip_first(flags.skip_first);
  selection.set_position_end(flags.position_end);
  selection.set_position_stride(flags.position_stride > 1 ? flags.position_stride : 0);
  for (uint32_t id : flags.exclude_tokens) selection.add_exclude_token_ids(id);
  selection.set_sample_rows(flags.sample_rows);
  selection.set_seed(flags.seed);
  if (selection.ByteSizeLong() > 0) *request.mutable_selection() = selection;
  if (!flags.dataset.empty()) {
    v1::DatasetSource* dataset =
        flags.feed.empty() ? request.mutable_dataset() : request.mutable_feed()->mutable_dataset();
    dataset->set_name(flags.dataset);
    dataset->set_sequence_length(static_cast<int32_t>(flags.sequence_length));
    dataset->set_first_sequence(flags.first_sequence);
    dataset->set_sequence_count(flags.sequence_count);
    if (flags.prepend_token.has_value()) dataset->set_prepend_token_id(*flags.prepend_token);
  }
  if (!flags.feed.empty()) {
    request.mutable_feed()->set_name(flags.feed);
    request.mutable_feed()->set_start_when_subscribers(static_cast<int32_t>(flags.feed_members));
    request.mutable_feed()->set_on_lag(flags.feed_on_lag == "wait" ? v1::ON_LAG_WAIT : v1::ON_LAG_DETACH);
  }
  return request;
}

TokenFormat FormatOf(const CaptureFlags& flags) {
  if (flags.token_format == "bytes") return TokenFormat::kBytes;
  const bool npy =
      flags.token_format == "npy" || (flags.token_format == "auto" && absl::EndsWith(flags.tokens, ".npy"));
  return npy ? TokenFormat::kNpy : TokenFormat::kText;
}

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokens(const CaptureFlags& flags, client::Client& client) {
  TokenSourceOptions options;
  options.path = flags.tokens;
  options.format = FormatOf(flags);
  options.prepend_token = flags.prepend_token;
  options.sequence_length = flags.sequence_length;
  if (options.format == TokenFormat::kText) {
    if (flags.sequence_length != 0) {
      return absl::InvalidArgumentError(
          "--sequence-length: sequences of ids as text are as long as their lines; leave it out");
    }
  } else {
    ASSIGN_OR_RETURN(v1::Model model, client.GetModel(flags.model));
    if (options.format == TokenFormat::kBytes && model.vocabulary_size() < 256) {
      return absl::InvalidArgumentError(absl::StrCat("--token-format: bytes needs a vocabulary of 256 or more; ",
                                                     model.name(), " has ", model.vocabulary_size(), " tokens"));
    }
    if (options.sequence_length == 0) {
      options.sequence_length = model.context_length() - (flags.prepend_token.has_value() ? 1 : 0);
    }
  }
  return TokenSource::Open(options);
}

// The most rows that can come, over all hook points; none where that is not known.
std::optional<int64_t> TotalRows(const CaptureFlags& flags, const v1::CaptureRequest& request,
                                 const v1::CaptureStarted& started, const TokenSource* tokens, client::Client& client) {
  if (tokens == nullptr && request.has_dataset()) {
    absl::StatusOr<v1::EstimateCaptureResponse> estimate = client.EstimateCapture(request);
    if (!estimate.ok()) return std::nullopt;  // only the display depends on it
    int64_t total = 0;
    for (const v1::HookPointEstimate& point : estimate->hook_points()) total += point.rows();
    return total;
  }
  const std::optional<int64_t> ids = tokens == nullptr ? std::nullopt : tokens->total_ids();
  if (!ids.has_value() && !flags.max_activations.has_value()) return std::nullopt;
  int64_t total = 0;
  for (const v1::HookPointGrant& grant : started.hook_points()) {
    total += std::min(grant.max_activations(), ids.value_or(grant.max_activations()));
  }
  return total;
}

absl::Status Run(const CaptureFlags& flags, const std::string& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(v1::CaptureRequest request, MakeRequest(flags));
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Connect(server));
  std::unique_ptr<TokenSource> tokens;
  if (!flags.tokens.empty()) {
    absl::StatusOr<std::unique_ptr<TokenSource>> opened = OpenTokens(flags, *client);
    if (!opened.ok()) return ExplainUnavailable(opened.status(), server);
    tokens = *std::move(opened);
  }

  // While files are being written a signal must not end the program before their temporary names are gone.
  Interrupt::Listener keep_running(&interrupt, [] {});
  std::unique_ptr<RowFiles> files;
  absl::StatusOr<CaptureResult> result;
  absl::Duration elapsed;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle());
    CaptureHandlers handlers;
    handlers.on_started = [&](const v1::CaptureStarted& started) -> absl::Status {
      for (const v1::HookPointGrant& grant : started.hook_points()) {
        if (!grant.clipped()) continue;
        progress.Note(absl::StrCat("hookline: the server grants ", WithCommas(grant.max_activations()), " rows of ",
                                   grant.hook_point(), ", its cap"));
      }
      if (!flags.out.empty()) {
        ASSIGN_OR_RETURN(files, RowFiles::Create(flags.out, started, flags.provenance,
                                                 flags.overwrite ? IfExists::kReplace : IfExists::kRefuse));
      }
      progress.SetTotal(TotalRows(flags, request, started, tokens.get(), *client));
      return absl::OkStatus();
    };
    handlers.on_chunk = [&](const client::Chunk& chunk) {
      return files == nullptr ? absl::OkStatus() : files->Append(chunk);
    };
    const StartCall start_call = [&](const std::string& resume_token) {
      v1::CaptureRequest resumed = request;
      resumed.set_resume_token(resume_token);
      return tokens == nullptr ? client->Capture(resumed) : client->CaptureStream(resumed);
    };
    result = RunCapture(start_call, tokens.get(), handlers, progress, interrupt);
    if (result.ok() && files != nullptr) {
      if (absl::Status status = files->Finish(result->summary.stop_reason()); !status.ok()) result = status;
    }
    elapsed = progress.elapsed();
  }
  if (!result.ok()) return ExplainUnavailable(result.status(), server);

  std::vector<std::string> paths;
  for (int i = 0; files != nullptr && i < result->started.hook_points_size(); ++i) paths.push_back(files->path(i));
  std::fputs((flags.json ? CaptureJson(*result, elapsed, paths) : CaptureTable(*result, elapsed, paths)).c_str(),
             stdout);
  return absl::OkStatus();
}

}  // namespace

void AddCaptureCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("capture", kDescription);
  command->footer(kFooter);
  auto flags = std::make_shared<CaptureFlags>();
  AddServerOption(*command, invocation);
  command->add_option("--model", flags->model, "The model's name; not needed where the server holds one")
      ->type_name("NAME");
  command
      ->add_option("--hook-points", flags->hook_points,
                   "Names and wildcards, separated by commas: `*` matches anything, `{2,5}` one of a list. Repeatable")
      ->type_name("NAMES")
      ->required()
      ->allow_extra_args(false);

  const std::string sources = "Where the token sequences come from";
  CLI::Option* tokens = command->add_option("--tokens", flags->tokens, "A file of tokens; `-`: standard input")
                            ->type_name("FILE")
                            ->group(sources);
  command
      ->add_option(
          "--token-format", flags->token_format,
          "text: ids separated by spaces or commas, one sequence a line; npy: an array of ids, 2-D: one sequence "
          "a row, 1-D: cut at --sequence-length; bytes: each byte is a token, cut at --sequence-length; auto: npy "
          "by the file's name, else text")
      ->check(CLI::IsMember({"auto", "text", "npy", "bytes"}))
      ->needs(tokens)
      ->group(sources)
      ->capture_default_str();
  CLI::Option* dataset = command->add_option("--dataset", flags->dataset, "A dataset that the server holds")
                             ->type_name("NAME")
                             ->excludes(tokens)
                             ->group(sources);
  command
      ->add_option(
          "--sequence-length", flags->sequence_length,
          "Tokens of a sequence that is cut from a stream, without --prepend-token. Default for files: what the "
          "model takes")
      ->check(CLI::Range(int64_t{1}, kMaxSequenceIds))
      ->type_name("N")
      ->group(sources);
  command->add_option("--prepend-token,--bos", flags->prepend_token, "A token id to put before each sequence")
      ->type_name("ID")
      ->group(sources);
  command->add_option("--first-sequence", flags->first_sequence, "The dataset's first sequence to take [0]")
      ->type_name("N")
      ->needs(dataset)
      ->group(sources);
  command
      ->add_option("--sequence-count", flags->sequence_count,
                   "How many sequences of the dataset; 0: all that follow [0]")
      ->type_name("N")
      ->needs(dataset)
      ->group(sources);
  CLI::Option* feed = command
                          ->add_option("--feed", flags->feed,
                                       "Share one pass over the dataset with all captures that name the same feed")
                          ->type_name("NAME")
                          ->needs(dataset)
                          ->group(sources);
  command
      ->add_option("--feed-members", flags->feed_members, "How many captures the feed waits for before it begins [1]")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->needs(feed)
      ->group(sources);
  command
      ->add_option("--feed-on-lag", flags->feed_on_lag,
                   "When a member reads too slowly: detach it, or have the feed wait for it")
      ->check(CLI::IsMember({"detach", "wait"}))
      ->needs(feed)
      ->group(sources)
      ->capture_default_str();

  const std::string rows = "Which rows, and how many";
  command
      ->add_option("--max-activations", flags->max_activations,
                   "The most rows of each hook point. Default: all, up to the server's cap")
      ->type_name("ROWS")
      ->group(rows);
  command
      ->add_option("--max-activations-for", flags->max_activations_for,
                   "Another number for one hook point, by its full name. Repeatable")
      ->type_name("NAME=ROWS")
      ->allow_extra_args(false)
      ->group(rows);
  command->add_option("--skip-first", flags->skip_first, "Leave out positions below this [0]")
      ->type_name("N")
      ->group(rows);
  command->add_option("--position-end", flags->position_end, "Leave out positions from here on; 0: no end [0]")
      ->type_name("N")
      ->group(rows);
  command->add_option("--position-stride", flags->position_stride, "Keep every n-th position from --skip-first on [1]")
      ->type_name("N")
      ->group(rows);
  command->add_option("--exclude-token", flags->exclude_tokens, "Leave out the rows of this token id. Repeatable")
      ->type_name("ID")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(rows);
  CLI::Option* sample = command
                            ->add_option("--sample-rows", flags->sample_rows,
                                         "Keep so many rows of each sequence, chosen at random; 0: all [0]")
                            ->type_name("N")
                            ->group(rows);
  command->add_option("--seed", flags->seed, "Seed of --sample-rows [0]")->type_name("N")->needs(sample)->group(rows);

  const std::string values = "What is written";
  command->add_option("--dtype", flags->dtype, "Type of the values")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->group(values)
      ->capture_default_str();
  CLI::Option* out = command->add_option("--out", flags->out, "Directory for the files. Without it: statistics only")
                         ->type_name("DIR")
                         ->group(values);
  command->add_flag("--provenance", flags->provenance, "Also write where each row comes from")
      ->needs(out)
      ->group(values);
  command->add_flag("--overwrite", flags->overwrite, "Replace files that are there")->needs(out)->group(values);
  command
      ->add_flag("--deterministic", flags->deterministic,
                 "Rows that do not depend on who else uses the server, to the last bit; slower")
      ->group(values);
  command->add_flag("--json", flags->json, "Print what came as JSON")->group(values);
  command->add_flag("--quiet,-q", flags->quiet, "No progress")->group(values);

  command->callback([flags, &invocation] {
    if (flags->tokens.empty() && flags->dataset.empty()) {
      throw CLI::RequiredError("--tokens or --dataset");
    }
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
