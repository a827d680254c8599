// `hookline capture`: rows of hook points into files, or only their statistics.
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/progress.h"
#include "client/cli/safetensors_file.h"
#include "client/cli/token_file.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// Ids of one message: at most five bytes each, so well below gRPC's 4 MiB.
constexpr int64_t kMaxMessageTokens = 256 * 1024;
// A server that restarts is back within seconds; longer than this is a case for the operator.
constexpr int kMaxResumes = 8;
constexpr absl::Duration kFirstPause = absl::Milliseconds(250);

struct CaptureOptions {
  std::vector<std::string> hook_points;
  TokenFileOptions tokens;
  std::string dataset;
  int64_t sequence_length = 0;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  int64_t prepend_token_id = -1;
  int64_t max_activations = 0;
  std::vector<std::string> max_activations_for;
  std::string dtype = "float32";
  std::string out;
  bool overwrite = false;
  bool provenance = false;
  bool deterministic = false;
  int64_t skip_first = 0;
  int64_t position_end = 0;
  int64_t position_stride = 1;
  std::vector<uint32_t> exclude_token_ids;
  int64_t sample_rows = 0;
  uint64_t seed = 0;
};

const std::map<std::string, v1::Dtype> kDtypes = {
    {"float32", v1::DTYPE_FLOAT32}, {"bfloat16", v1::DTYPE_BFLOAT16}, {"float16", v1::DTYPE_FLOAT16}};

const char* SafetensorsName(v1::Dtype dtype) {
  return dtype == v1::DTYPE_FLOAT32 ? "F32" : dtype == v1::DTYPE_BFLOAT16 ? "BF16" : "F16";
}

// The call that an interrupt cancels.
class Interrupt {
 public:
  // SIGINT and SIGTERM are this object's from here on; to be made before other threads.
  Interrupt() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    waiter_ = std::thread([this] {
      int signal;
      sigwait(&signals_, &signal);
      std::lock_guard lock(mu_);
      happened_ = true;
      if (call_ != nullptr) call_->Cancel();
    });
  }
  ~Interrupt() {
    pthread_kill(waiter_.native_handle(), SIGINT);
    waiter_.join();
  }

  // `call` (null: none) is cancelled when the signal comes, or now if it has.
  void Watch(client::CaptureCall* call) {
    std::lock_guard lock(mu_);
    call_ = call;
    if (happened_ && call_ != nullptr) call_->Cancel();
  }
  bool happened() {
    std::lock_guard lock(mu_);
    return happened_;
  }

 private:
  sigset_t signals_;
  std::thread waiter_;
  std::mutex mu_;
  client::CaptureCall* call_ = nullptr;
  bool happened_ = false;
};

// Where the rows go.
class Output {
 public:
  Output(const CaptureOptions& options, const v1::CaptureStarted& started) : options_(options), started_(started) {
    rows_.resize(started.hook_points_size());
  }

  absl::Status Open() {
    if (options_.out.empty()) return absl::OkStatus();
    if (mkdir(options_.out.c_str(), 0755) != 0 && errno != EEXIST) {
      return absl::InvalidArgumentError(absl::StrCat("--out ", options_.out, ": ", std::strerror(errno)));
    }
    std::set<std::string> names;
    for (const v1::HookPointGrant& grant : started_.hook_points()) {
      const std::string path = absl::StrCat(options_.out, "/", FileName(grant.hook_point(), &names));
      struct stat status;
      if (!options_.overwrite && lstat(path.c_str(), &status) == 0) {
        return absl::AlreadyExistsError(
            absl::StrCat("--out: ", path, " is there already; name another folder or give --overwrite"));
      }
      auto file = SafetensorsFile::Create(path, grant.hook_point(), SafetensorsName(started_.dtype()), grant.width(),
                                          {{"hook_point", grant.hook_point()},
                                           {"model", started_.model()},
                                           {"fingerprint", started_.fingerprint()},
                                           {"format", "hookline"}});
      if (!file.ok()) return file.status();
      files_.push_back(*std::move(file));
    }
    return absl::OkStatus();
  }

  absl::Status Take(const client::Chunk& chunk) {
    const int index = chunk.hook_point_index();
    rows_[index] = chunk.header().first_row() + chunk.header().rows();
    bytes_ += chunk.data_bytes();
    if (!files_.empty()) {
      for (absl::Span<const uint8_t> piece : chunk.pieces()) RETURN_IF_ERROR(files_[index]->Append(piece));
    }
    // Hook points are aligned, so the longest one's columns begin with every other's.
    const int64_t known = static_cast<int64_t>(sequence_.size());
    for (int64_t i = std::max<int64_t>(0, known - chunk.header().first_row()); i < chunk.header().sequence_size();
         ++i) {
      sequence_.push_back(chunk.header().sequence(static_cast<int>(i)));
      position_.push_back(chunk.header().position(static_cast<int>(i)));
      token_id_.push_back(chunk.header().token_id(static_cast<int>(i)));
    }
    return absl::OkStatus();
  }

  absl::Status Finish() {
    for (size_t h = 0; h < files_.size(); ++h) {
      std::vector<Column> columns;
      if (options_.provenance) {
        columns = {Of("provenance/sequence", "I64", sequence_, rows_[h]),
                   Of("provenance/position", "I32", position_, rows_[h]),
                   Of("provenance/token_id", "U32", token_id_, rows_[h])};
      }
      RETURN_IF_ERROR(files_[h]->Finish(rows_[h], columns));
    }
    return absl::OkStatus();
  }

  int64_t rows() const { return *std::max_element(rows_.begin(), rows_.end()); }
  int64_t bytes() const { return bytes_; }

 private:
  // Hook points of TorchScript models can hold any character; the exact name is in the file.
  static std::string FileName(const std::string& hook_point, std::set<std::string>* taken) {
    std::string name = hook_point;
    for (char& c : name) {
      if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '_';
    }
    if (name[0] == '.') name[0] = '_';
    name.resize(std::min<size_t>(name.size(), 200));
    std::string unique = name;
    for (int i = 2; !taken->insert(unique).second; ++i) unique = absl::StrCat(name, "-", i);
    return unique + ".safetensors";
  }

  template <typename T>
  static Column Of(const char* name, const char* dtype, const std::vector<T>& values, int64_t rows) {
    return {name, dtype, {reinterpret_cast<const uint8_t*>(values.data()), static_cast<size_t>(rows) * sizeof(T)}};
  }

  const CaptureOptions& options_;
  const v1::CaptureStarted started_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<int64_t> rows_;
  int64_t bytes_ = 0;
  std::vector<int64_t> sequence_;
  std::vector<int32_t> position_;
  std::vector<uint32_t> token_id_;
};

absl::StatusOr<v1::CaptureRequest> MakeRequest(const CommonOptions& common, const CaptureOptions& options) {
  v1::CaptureRequest request;
  request.set_model(common.model);
  for (const std::string& list : options.hook_points) {
    // Commas inside braces belong to a wildcard.
    int depth = 0;
    std::string name;
    for (char c : list + ",") {
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
      if (c != ',' || depth > 0) {
        name.push_back(c);
      } else if (!name.empty()) {
        request.add_hook_points(std::exchange(name, ""));
      }
    }
  }
  if (options.max_activations != 0) request.set_max_activations(options.max_activations);
  for (const std::string& entry : options.max_activations_for) {
    const size_t equals = entry.rfind('=');
    int64_t budget;
    if (equals == std::string::npos || !absl::SimpleAtoi(entry.substr(equals + 1), &budget)) {
      return absl::InvalidArgumentError(absl::StrCat("--max-activations-for ", entry, ": give HOOK_POINT=ROWS"));
    }
    (*request.mutable_max_activations_by_hook_point())[entry.substr(0, equals)] = budget;
  }
  request.set_dtype(kDtypes.at(options.dtype));
  request.set_provenance(options.provenance);
  request.set_deterministic(options.deterministic);
  v1::Selection& selection = *request.mutable_selection();
  selection.set_skip_first(static_cast<int32_t>(options.skip_first));
  selection.set_position_end(static_cast<int32_t>(options.position_end));
  selection.set_position_stride(static_cast<int32_t>(options.position_stride));
  for (uint32_t id : options.exclude_token_ids) selection.add_exclude_token_ids(id);
  selection.set_sample_rows(static_cast<int32_t>(options.sample_rows));
  selection.set_seed(options.seed);
  if (!options.dataset.empty()) {
    v1::DatasetSource& source = *request.mutable_dataset();
    source.set_name(options.dataset);
    source.set_sequence_length(static_cast<int32_t>(options.sequence_length));
    source.set_first_sequence(options.first_sequence);
    source.set_sequence_count(options.sequence_count);
    if (options.prepend_token_id >= 0) source.set_prepend_token_id(static_cast<uint32_t>(options.prepend_token_id));
  }
  return request;
}

// Sends a file's sequences from `first` on. What the file is wrong about is left in *status, and ends the call.
void SendTokens(const TokenFileOptions& options, int64_t first, client::CaptureCall& call, absl::Status* status) {
  auto file = TokenFile::Open(options);
  *status = file.status();
  v1::TokenBatch batch;
  int64_t tokens = 0;
  for (int64_t index = 0; status->ok(); ++index) {
    auto sequence = (*file)->Next();
    *status = sequence.status();
    if (!status->ok()) break;
    const bool ends = !sequence->has_value();
    if (!ends && index < first) continue;
    const int64_t length = ends ? 0 : static_cast<int64_t>((*sequence)->size());
    if (batch.sequences_size() > 0 && (ends || tokens + length > kMaxMessageTokens)) {
      if (!call.WriteTokens(batch)) return;
      batch.Clear();
      tokens = 0;
    }
    if (ends) {
      call.FinishTokens();
      return;
    }
    batch.add_sequences()->mutable_ids()->Add((*sequence)->begin(), (*sequence)->end());
    tokens += length;
  }
  call.Cancel();
}

class CaptureCommand {
 public:
  CaptureCommand(const CommonOptions& common, CaptureOptions options) : common_(common), options_(std::move(options)) {}

  absl::Status Run() {
    Interrupt interrupt;
    ASSIGN_OR_RETURN(client_, client::Client::Connect(common_.server));
    ASSIGN_OR_RETURN(v1::CaptureRequest request, MakeRequest(common_, options_));
    std::optional<int64_t> expected;
    if (options_.dataset.empty()) {
      RETURN_IF_ERROR(PrepareTokens());
      ASSIGN_OR_RETURN(const std::unique_ptr<TokenFile> file, OpenedTokens());
      if (file != nullptr) expected = file->tokens();
    }
    if (options_.max_activations > 0)
      expected = std::min(expected.value_or(options_.max_activations), options_.max_activations);
    progress_.emplace(expected);

    absl::Duration pause = kFirstPause;
    for (int resumes = 0;; ++resumes) {
      const absl::Status status = RunOnce(request, interrupt);
      if (interrupt.happened()) return absl::CancelledError("interrupted; nothing was kept");
      if (status.ok()) break;
      const bool rereadable = !options_.dataset.empty() || options_.tokens.path != "-";
      if (status.code() != absl::StatusCode::kUnavailable || output_ == nullptr || !rereadable ||
          resumes == kMaxResumes) {
        return status;
      }
      absl::FPrintF(stderr, "\nhookline: %s; going on in %s\n", std::string(status.message()),
                    absl::FormatDuration(pause));
      absl::SleepFor(pause);
      pause *= 2;
      request.set_resume_token(resume_token_);
    }
    progress_->Finish();
    progress_.reset();
    RETURN_IF_ERROR(output_->Finish());
    ShowSummary();
    return absl::OkStatus();
  }

 private:
  // Streams of tokens are cut at what the model takes, unless said otherwise.
  absl::Status PrepareTokens() {
    TokenFileOptions& tokens = options_.tokens;
    if (options_.prepend_token_id >= 0) tokens.prepend_token_id = static_cast<uint32_t>(options_.prepend_token_id);
    ASSIGN_OR_RETURN(const v1::Model model, client_->GetModel(common_.model));
    if (tokens.format == "bytes" && model.vocabulary_size() < 256) {
      return absl::InvalidArgumentError(absl::StrCat("--token-format bytes: model ", model.name(), " has ",
                                                     model.vocabulary_size(), " token ids, so it is not byte-level"));
    }
    const int64_t most = model.context_length() - (tokens.prepend_token_id.has_value() ? 1 : 0);
    tokens.sequence_length = options_.sequence_length > 0 ? options_.sequence_length : most;
    return absl::OkStatus();
  }

  // Opened once before anything is asked of the server, so that a wrong file is the first thing said.
  absl::StatusOr<std::unique_ptr<TokenFile>> OpenedTokens() const {
    if (options_.tokens.path == "-") return nullptr;
    return TokenFile::Open(options_.tokens);
  }

  absl::Status RunOnce(const v1::CaptureRequest& request, Interrupt& interrupt) {
    const bool streams = options_.dataset.empty();
    const std::unique_ptr<client::CaptureCall> call =
        streams ? client_->CaptureStream(request) : client_->Capture(request);
    interrupt.Watch(call.get());
    absl::Status sent;
    std::thread sender;
    const absl::Status received = Receive(*call, [&](int64_t first) {
      if (streams) sender = std::thread([&, first] { SendTokens(options_.tokens, first, *call, &sent); });
    });
    if (!received.ok()) call->Cancel();
    if (sender.joinable()) sender.join();
    interrupt.Watch(nullptr);
    return sent.ok() ? received : sent;
  }

  template <typename StartSender>
  absl::Status Receive(client::CaptureCall& call, StartSender&& start_sender) {
    while (true) {
      ASSIGN_OR_RETURN(std::optional<client::CaptureEvent> event, call.Next());
      if (!event.has_value()) return absl::OkStatus();
      if (const auto* started = std::get_if<v1::CaptureStarted>(&*event)) {
        if (output_ == nullptr) {
          started_ = *started;
          auto output = std::make_unique<Output>(options_, *started);
          RETURN_IF_ERROR(output->Open());
          output_ = std::move(output);
          for (const v1::HookPointGrant& grant : started->hook_points()) {
            if (grant.clipped()) {
              absl::FPrintF(stderr, "hookline: the server grants %s at most %d rows\n", grant.hook_point(),
                            grant.max_activations());
            }
          }
        } else if (started->fingerprint() != started_.fingerprint()) {
          return absl::FailedPreconditionError("the server came back with other weights; capture again");
        }
        resume_token_ = started->resume_token();
        start_sender(started->next_sequence());
      } else if (const auto* chunk = std::get_if<client::Chunk>(&*event)) {
        RETURN_IF_ERROR(output_->Take(*chunk));
        resume_token_ = chunk->header().resume_token();
        progress_->Update(output_->rows(), output_->bytes());
      } else {
        summary_ = std::get<v1::CaptureSummary>(*std::move(event));
      }
    }
  }

  void ShowSummary() const {
    size_t longest = 10;
    for (const v1::HookPointGrant& grant : started_.hook_points()) {
      longest = std::max(longest, grant.hook_point().size());
    }
    const int name = static_cast<int>(longest);
    absl::PrintF("%-*s  %12s  %6s  %13s  %12s  %12s  %5s  %5s\n", name, "hook point", "rows", "width", "mean row norm",
                 "mean", "rms", "NaN", "inf");
    for (int h = 0; h < summary_.hook_points_size(); ++h) {
      const v1::HookPointSummary& point = summary_.hook_points(h);
      absl::PrintF("%-*s  %12d  %6d  %13.6g  %12.6g  %12.6g  %5d  %5d\n", name, point.hook_point(), point.rows(),
                   started_.hook_points(h).width(), point.mean_row_norm(), point.mean(), point.rms(), point.nan_count(),
                   point.infinity_count());
    }
    const v1::CaptureTiming& timing = summary_.timing();
    absl::PrintF(
        "%s; %d sequences, %d tokens in %d batches; %.3g s, of which queue %.3g, forward %.3g, copy %.3g, "
        "wire %.3g\n",
        summary_.stop_reason() == v1::STOP_REASON_BUDGET ? "every budget is full" : "the source has ended",
        summary_.sequences(), summary_.tokens(), summary_.batches(), timing.total_seconds(), timing.queue_seconds(),
        timing.forward_seconds(), timing.copy_seconds(), timing.wire_seconds());
    if (!options_.out.empty()) absl::PrintF("written to %s\n", options_.out);
  }

  const CommonOptions& common_;
  CaptureOptions options_;
  std::unique_ptr<client::Client> client_;
  std::optional<Progress> progress_;
  std::unique_ptr<Output> output_;
  v1::CaptureStarted started_;
  v1::CaptureSummary summary_;
  std::string resume_token_;
};

}  // namespace

void AddCaptureCommand(CLI::App& app, CommonOptions& common, Run* run) {
  auto options = std::make_shared<CaptureOptions>();
  CLI::App* capture = app.add_subcommand(
      "capture", "Captures hook points: one safetensors file for each, or only statistics without --out");
  capture->footer(
      "Examples:\n"
      "  hookline capture --hook-points blocks.3.hook_resid_post --tokens ids.txt --out rows\n"
      "  hookline capture --hook-points 'blocks.{2,5}.hook_mlp_out' --tokens text.txt --token-format bytes\n"
      "  hookline capture --hook-points 'blocks.*.hook_resid_post' --dataset pile --sequence-length 1024 \\\n"
      "      --max-activations 1000000 --dtype bfloat16 --out rows");
  capture->add_option("--model", common.model, "The model; needed where the server holds several");
  capture
      ->add_option("--hook-points", options->hook_points,
                   "Names and wildcards, separated by commas: * matches anything, {2,5} lists")
      ->required();
  CLI::Option* tokens = capture->add_option("--tokens", options->tokens.path,
                                            "File of token ids, - for standard input (see --token-format)");
  capture
      ->add_option("--token-format", options->tokens.format,
                   "ids: numbers as text, one sequence a line; npy: a NumPy file; bytes: each byte of a text is a "
                   "token, for byte-level models. Default: npy for names that end so, else ids")
      ->check(CLI::IsMember({"ids", "npy", "bytes"}))
      ->needs(tokens);
  CLI::Option* dataset =
      capture->add_option("--dataset", options->dataset, "A dataset that the server holds, instead of --tokens");
  tokens->excludes(dataset);
  capture
      ->add_option("--sequence-length", options->sequence_length,
                   "Where a stream of tokens is cut. Default: as long as the model allows")
      ->check(CLI::PositiveNumber);
  capture->add_option("--first-sequence", options->first_sequence, "First sequence of the dataset")
      ->check(CLI::NonNegativeNumber)
      ->needs(dataset);
  capture->add_option("--sequence-count", options->sequence_count, "Sequences of the dataset; default: all")
      ->check(CLI::PositiveNumber)
      ->needs(dataset);
  capture->add_option("--prepend-token", options->prepend_token_id, "Token id put before every sequence, such as BOS")
      ->check(CLI::NonNegativeNumber);
  capture->add_option("--max-activations", options->max_activations, "The most rows for each hook point")
      ->check(CLI::PositiveNumber);
  capture->add_option("--max-activations-for", options->max_activations_for,
                      "HOOK_POINT=ROWS: another budget for one of them; may be repeated");
  capture->add_option("--dtype", options->dtype, "Type of the values: float32, bfloat16, float16")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  capture->add_option("--out", options->out, "Folder for the files; made if it is not there");
  capture->add_flag("--overwrite", options->overwrite, "Replace files that are there");
  capture->add_flag("--provenance", options->provenance, "Also write each row's sequence, position and token id");
  capture->add_flag("--deterministic", options->deterministic, "The same bits whoever else is connected; slower");
  capture->add_option("--skip-first", options->skip_first, "Leave out the first positions of each sequence")
      ->check(CLI::NonNegativeNumber);
  capture->add_option("--position-end", options->position_end, "Leave out positions from here on; 0: none")
      ->check(CLI::NonNegativeNumber);
  capture->add_option("--position-stride", options->position_stride, "Keep every n-th position")
      ->check(CLI::PositiveNumber);
  capture->add_option("--exclude-token", options->exclude_token_ids, "Leave out tokens with this id; may be repeated");
  capture->add_option("--sample-rows", options->sample_rows, "Keep this many rows of each sequence; 0: all")
      ->check(CLI::NonNegativeNumber);
  capture->add_option("--seed", options->seed, "Seed of the sampling");
  capture->callback([&common, options, tokens, dataset, run] {
    if (tokens->count() + dataset->count() == 0) {
      throw CLI::RequiredError("--tokens FILE or --dataset NAME");
    }
    *run = [&common, options] { return CaptureCommand(common, *options).Run(); };
  });
}

}  // namespace hookline::cli
