#include "client/cli/commands/capture_request.h"

#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"
#include "client/cli/files/text_file.h"
#include "client/cli/terminal/text_format.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

const char kSources[] = "Source of the token sequences";

constexpr absl::string_view kJsonLines = "jsonl:";

// Returns whether --tokens is a file of texts, not of ids.
bool HoldsTexts(const CaptureRequestFlags& flags) {
  return flags.token_format == "utf8" || absl::StartsWith(flags.token_format, kJsonLines);
}

// Returns "" for a known format, else an error message.
std::string CheckTokenFormat(const std::string& format) {
  for (absl::string_view known :
       {"auto", "text", "npy", "bytes", "uint8", "uint16", "int32", "uint32", "int64", "uint64", "utf8"}) {
    if (format == known) return "";
  }
  if (absl::StartsWith(format, kJsonLines) && format.size() > kJsonLines.size()) return "";
  return absl::StrCat("`", format,
                      "` is not auto, text, npy, bytes, uint8, uint16, int32, uint32, int64, uint64, utf8 ",
                      "or jsonl:FIELD");
}

void AddTextOptions(CLI::App& command, CaptureRequestFlags& flags, CLI::Option* tokens) {
  command.add_option("--text", flags.texts, "A text, which the model's tokenizer turns into a sequence. Repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->excludes(tokens)
      ->group(kSources);
  command
      .add_option("--add-special-tokens", flags.add_special_tokens,
                  "Add special tokens to texts, such as the one that begins a document; default: as the tokenizer does")
      ->check(CLI::IsMember({"default", "yes", "no"}))
      ->group(kSources)
      ->capture_default_str();
  command
      .add_option("--long-texts", flags.long_texts,
                  "What to do with a text of more tokens than the model takes: refuse it, truncate it, or split it "
                  "into several sequences")
      ->check(CLI::IsMember({"refuse", "truncate", "split"}))
      ->group(kSources)
      ->capture_default_str();
}

void FillText(const CaptureRequestFlags& flags, v1::TextSource* text) {
  for (const std::string& one : flags.texts) text->add_texts(one);
  if (flags.add_special_tokens != "default") text->set_add_special_tokens(flags.add_special_tokens == "yes");
  if (flags.long_texts == "truncate") text->set_long_texts(v1::LONG_TEXTS_TRUNCATE);
  if (flags.long_texts == "split") text->set_long_texts(v1::LONG_TEXTS_SPLIT);
}

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTexts(const CaptureRequestFlags& flags, AnyServer& server) {
  if (flags.sequence_length != 0) {
    return absl::InvalidArgumentError(
        "--sequence-length: each text is one sequence of its own length; leave the flag out");
  }
  TextFileOptions options;
  options.path = flags.tokens;
  options.prepend_token = flags.prepend_token;
  if (flags.token_format != "utf8") options.field = flags.token_format.substr(kJsonLines.size());
  if (flags.long_texts != "refuse") {
    ASSIGN_OR_RETURN(const v1::Model model, server.GetModel(flags.model));
    options.long_texts = flags.long_texts == "split" ? LongTexts::kSplit : LongTexts::kTruncate;
    options.max_ids = model.context_length() - (flags.prepend_token.has_value() ? 1 : 0);
  }
  v1::TokenizeRequest form;
  form.set_model(flags.model);
  if (flags.add_special_tokens != "default") form.set_add_special_tokens(flags.add_special_tokens == "yes");
  return OpenTextFile(options, [form, &server](const std::vector<std::string>& texts) {
    v1::TokenizeRequest request = form;
    *request.mutable_texts() = {texts.begin(), texts.end()};
    return server.Tokenize(request);
  });
}

constexpr absl::string_view kNumpyStart("\x93NUMPY", 6);

// Returns whether the file begins with NumPy's magic string, whatever its name.
bool IsNumpyFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[kNumpyStart.size()] = {};
  file.read(start, sizeof(start));
  return absl::string_view(start, static_cast<size_t>(file.gcount())) == kNumpyStart;
}

TokenFormat FormatOf(const CaptureRequestFlags& flags) {
  if (flags.token_format == "bytes") return TokenFormat::kBytes;
  if (flags.token_format == "text") return TokenFormat::kText;
  if (flags.token_format != "auto") return TokenFormat::kArray;
  if (flags.tokens == "-") return TokenFormat::kText;
  return absl::EndsWith(flags.tokens, ".npy") || IsNumpyFile(flags.tokens) ? TokenFormat::kArray : TokenFormat::kText;
}

void AddFeedOptions(CLI::App& command, CaptureRequestFlags& flags, CLI::Option* dataset) {
  CLI::Option* feed =
      command
          .add_option("--feed", flags.feed, "Share one pass over the dataset with all captures that name the same feed")
          ->type_name("NAME")
          ->needs(dataset)
          ->group(kSources);
  command
      .add_option("--feed-members", flags.feed_members,
                  "Number of captures that the feed waits for before it begins [1]")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->needs(feed)
      ->group(kSources);
  command
      .add_option("--feed-on-lag", flags.feed_on_lag,
                  "When a member reads too slowly: detach it, or make the feed wait for it")
      ->check(CLI::IsMember({"detach", "wait"}))
      ->needs(feed)
      ->group(kSources)
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokenFile(const CaptureRequestFlags& flags, AnyServer& server) {
  if (HoldsTexts(flags)) return OpenTexts(flags, server);
  TokenSourceOptions options;
  options.path = flags.tokens;
  options.format = FormatOf(flags);
  if (options.format == TokenFormat::kArray && flags.token_format != "auto" && flags.token_format != "npy") {
    options.array_type = flags.token_format;
  }
  options.prepend_token = flags.prepend_token;
  options.sequence_length = flags.sequence_length;
  if (options.format == TokenFormat::kText) {
    if (flags.sequence_length != 0) {
      return absl::InvalidArgumentError(
          "--sequence-length: for ids as text, each line is one sequence; leave the flag out");
    }
  } else {
    ASSIGN_OR_RETURN(v1::Model model, server.GetModel(flags.model));
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

void AddSelectionOptions(CLI::App& command, CaptureRequestFlags& flags) {
  const std::string rows = "Selection of rows";
  command
      .add_option("--max-activations", flags.max_activations,
                  "The most rows of each hook point. Default: all, up to the server's cap")
      ->type_name("ROWS")
      ->group(rows);
  command
      .add_option("--max-activations-for", flags.max_activations_for,
                  "Another --max-activations for one hook point, by its full name. Repeatable")
      ->type_name("NAME=ROWS")
      ->allow_extra_args(false)
      ->group(rows);
  command.add_option("--skip-first", flags.skip_first, "Leave out positions below this [0]")
      ->type_name("N")
      ->group(rows);
  command
      .add_option("--position-end", flags.position_end,
                  "Leave out positions from this one on; negative: that many at the end; 0: none [0]")
      ->type_name("N")
      ->group(rows);
  command.add_option("--position-stride", flags.position_stride, "Keep every N-th position from --skip-first on [1]")
      ->type_name("N")
      ->group(rows);
  command.add_option("--exclude-token", flags.exclude_tokens, "Leave out the rows of this token id. Repeatable")
      ->type_name("ID")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(rows);
  CLI::Option* sample = command
                            .add_option("--sample-rows", flags.sample_rows,
                                        "Keep this many rows of each sequence, chosen at random; 0: all [0]")
                            ->type_name("N")
                            ->group(rows);
  command.add_flag("--last-only", flags.last_only, "Keep only the last row of each sequence, after the other flags")
      ->excludes(sample)
      ->group(rows);
  command.add_option("--seed", flags.seed, "Seed of --sample-rows [0]")->type_name("N")->needs(sample)->group(rows);
}

}  // namespace

CLI::Option* AddSourceOptions(CLI::App& command, CaptureRequestFlags& flags) {
  command.add_option("--model", flags.model, "The model's name; not needed if the server holds only one")
      ->type_name("NAME");
  CLI::Option* tokens = command.add_option("--tokens", flags.tokens, "A file of tokens; `-`: standard input")
                            ->type_name("FILE")
                            ->group(kSources);
  command
      .add_option(
          "--token-format", flags.token_format,
          "text: ids separated by spaces or commas, one sequence a line; npy: an array of ids (2-D: each row is a "
          "sequence; 1-D: cut at --sequence-length); bytes: each byte is a token, cut at --sequence-length; uint8, "
          "uint16, int32, uint32, int64 or uint64: binary ids of this type without a header, cut likewise; utf8: "
          "texts, one a line, which the model's tokenizer encodes; jsonl:FIELD: texts, each in this field of the JSON "
          "object on its line; auto: npy if the file's name or first bytes say so, else text")
      ->check(CLI::Validator(CheckTokenFormat, "FORMAT"))
      ->needs(tokens)
      ->group(kSources)
      ->capture_default_str();
  CLI::Option* dataset = command.add_option("--dataset", flags.dataset, "A dataset that the server holds")
                             ->type_name("NAME")
                             ->excludes(tokens)
                             ->group(kSources);
  AddTextOptions(command, flags, tokens);
  command
      .add_option(
          "--sequence-length", flags.sequence_length,
          "Tokens of each sequence cut from a stream, without --prepend-token. Default for files: as many as the "
          "model takes")
      ->check(CLI::Range(int64_t{1}, kMaxSequenceIds))
      ->type_name("N")
      ->group(kSources);
  command.add_option("--prepend-token,--bos", flags.prepend_token, "A token id to put before each sequence")
      ->type_name("ID")
      ->group(kSources);
  command.add_option("--first-sequence", flags.first_sequence, "The dataset's first sequence to take [0]")
      ->type_name("N")
      ->needs(dataset)
      ->group(kSources);
  command
      .add_option("--sequence-count", flags.sequence_count,
                  "Number of sequences of the dataset; 0: all that follow [0]")
      ->type_name("N")
      ->needs(dataset)
      ->group(kSources);
  command
      .add_option("--shuffle-seed", flags.shuffle_seed,
                  "Take the sequences in a random order that this seed determines; without it: in order")
      ->type_name("N")
      ->needs(dataset)
      ->group(kSources);
  command
      .add_option("--epochs", flags.epochs,
                  "Number of times to take the sequences; with --shuffle-seed each time in another order [1]")
      ->check(CLI::Range(1, 1'000'000))
      ->type_name("N")
      ->needs(dataset)
      ->group(kSources);
  return dataset;
}

void AddCaptureRequestOptions(CLI::App& command, CaptureRequestFlags& flags, Feeds feeds) {
  CLI::Option* const dataset = AddSourceOptions(command, flags);
  command
      .add_option("--hook-points", flags.hook_points,
                  "Names and wildcards, separated by commas: `*` matches anything, `{2,5}` one of a list. Repeatable")
      ->type_name("NAMES")
      ->required()
      ->allow_extra_args(false);
  if (feeds == Feeds::kOffered) AddFeedOptions(command, flags, dataset);

  AddSelectionOptions(command, flags);

  const std::string values = "Output";
  command.add_option("--dtype", flags.dtype, "Type of the values")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "float8_e4m3", "int8"}))
      ->group(values)
      ->capture_default_str();
  command.add_option("--top-k", flags.top_k, "Keep only the K entries of largest magnitude of each row; 0: all [0]")
      ->type_name("K")
      ->group(values);
  command
      .add_flag("--deterministic", flags.deterministic,
                "Send rows that do not depend on other clients of the server, to the last bit; slower")
      ->group(values);
}

void RequireSource(const CaptureRequestFlags& flags) {
  if (flags.tokens.empty() && flags.dataset.empty() && flags.texts.empty()) {
    throw CLI::RequiredError("--text, --tokens or --dataset");
  }
  if (!flags.dataset.empty() && !flags.texts.empty()) throw CLI::ExcludesError("--text", "--dataset");
  const bool has_texts = !flags.texts.empty() || HoldsTexts(flags);
  if (!has_texts && flags.add_special_tokens != "default") {
    throw CLI::RequiresError("--add-special-tokens", "--text or --token-format utf8");
  }
  if (!has_texts && flags.long_texts != "refuse") {
    throw CLI::RequiresError("--long-texts", "--text or --token-format utf8");
  }
  if (!flags.texts.empty() && flags.prepend_token.has_value()) throw CLI::ExcludesError("--prepend-token", "--text");
}

absl::Status FillHookPoints(const HookPointFlags& flags, google::protobuf::RepeatedPtrField<std::string>* hook_points,
                            google::protobuf::Map<std::string, int64_t>* max_activations_by_hook_point) {
  for (const std::string& list : flags.hook_points) {
    for (const std::string& name : SplitHookPoints(list)) *hook_points->Add() = name;
  }
  for (const std::string& entry : flags.max_activations_for) {
    const size_t equals = entry.rfind('=');
    int64_t rows = 0;
    if (equals == std::string::npos || !absl::SimpleAtoi(entry.substr(equals + 1), &rows)) {
      return absl::InvalidArgumentError(absl::StrCat("--max-activations-for: `", entry, "` is not NAME=ROWS"));
    }
    if (!max_activations_by_hook_point->insert({entry.substr(0, equals), rows}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--max-activations-for: ", entry.substr(0, equals), " is given twice"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::CaptureRequest> MakeCaptureRequest(const CaptureRequestFlags& flags) {
  v1::CaptureRequest request;
  request.set_model(flags.model);
  RETURN_IF_ERROR(
      FillHookPoints(flags, request.mutable_hook_points(), request.mutable_max_activations_by_hook_point()));
  if (flags.max_activations.has_value()) request.set_max_activations(*flags.max_activations);
  request.set_dtype(Dtypes().at(flags.dtype));
  request.set_top_k(flags.top_k);
  request.set_deterministic(flags.deterministic);
  v1::Selection selection;
  selection.set_skip_first(flags.skip_first);
  selection.set_position_end(flags.position_end);
  selection.set_position_stride(flags.position_stride > 1 ? flags.position_stride : 0);
  for (uint32_t id : flags.exclude_tokens) selection.add_exclude_token_ids(id);
  selection.set_sample_rows(flags.sample_rows);
  selection.set_seed(flags.seed);
  selection.set_last_only(flags.last_only);
  if (selection.ByteSizeLong() > 0) *request.mutable_selection() = std::move(selection);
  if (!flags.dataset.empty()) {
    v1::DatasetSource* dataset =
        flags.feed.empty() ? request.mutable_dataset() : request.mutable_feed()->mutable_dataset();
    dataset->set_name(flags.dataset);
    dataset->set_sequence_length(static_cast<int32_t>(flags.sequence_length));
    dataset->set_first_sequence(flags.first_sequence);
    dataset->set_sequence_count(flags.sequence_count);
    if (flags.shuffle_seed.has_value()) dataset->set_shuffle_seed(*flags.shuffle_seed);
    dataset->set_epochs(flags.epochs);
    if (flags.prepend_token.has_value()) dataset->set_prepend_token_id(*flags.prepend_token);
  }
  if (!flags.texts.empty()) FillText(flags, request.mutable_text());
  if (!flags.feed.empty()) {
    request.mutable_feed()->set_name(flags.feed);
    request.mutable_feed()->set_start_when_subscribers(static_cast<int32_t>(flags.feed_members));
    request.mutable_feed()->set_on_lag(flags.feed_on_lag == "wait" ? v1::ON_LAG_WAIT : v1::ON_LAG_DETACH);
  }
  return request;
}

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokens(const CaptureRequestFlags& flags, AnyServer& server,
                                                        const std::string& address) {
  if (flags.tokens.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<TokenSource>> opened = OpenTokenFile(flags, server);
  if (!opened.ok()) return ExplainUnavailable(opened.status(), address);
  return opened;
}

Transfer CaptureTransfer(const v1::CaptureRequest& request, TokenSource* tokens, client::Client& client) {
  const auto start_call = [&request, tokens, &client](const std::string& resume_token) {
    v1::CaptureRequest resumed = request;
    resumed.set_resume_token(resume_token);
    return tokens == nullptr ? client.Capture(resumed) : client.CaptureStream(resumed);
  };
  Transfer transfer;
  transfer.run = [start_call, tokens](const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt) {
    return RunCapture(start_call, tokens, handlers, progress, interrupt);
  };
  return transfer;
}

std::optional<std::string> NoteOfFirstTokens(const v1::CaptureRequest& request, const TokenSource* tokens) {
  if (request.selection().skip_first() > 0) return std::nullopt;
  std::string what;
  if (tokens != nullptr) {
    if (!tokens->lacks_first_token()) return std::nullopt;
    what = "the sequences of --tokens";
  } else {
    const v1::DatasetSource& dataset = request.has_feed() ? request.feed().dataset() : request.dataset();
    if (dataset.sequence_length() == 0 || dataset.has_prepend_token_id()) return std::nullopt;
    what = absl::StrCat("dataset ", Escaped(dataset.name()), " cut at ", dataset.sequence_length(), " tokens");
  }
  return absl::StrCat(
      what,
      ": the sequences do not all begin with the same token, such as BOS, so their first positions have unusual "
      "activations; put BOS first (--prepend-token), or leave the first positions out (--skip-first)");
}

}  // namespace hookline::cli
