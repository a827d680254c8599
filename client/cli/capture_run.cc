#include "client/cli/capture_run.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/cli/exit_code.h"
#include "google/protobuf/util/message_differencer.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// Ids in one message. Small, so that a capture begins at once; a longer sequence goes alone.
constexpr int64_t kMessageIds = int64_t{1} << 16;
constexpr int kMessageSequences = 4096;

// Sends sequences from a thread of its own, until they end or the call does.
class TokenWriter {
 public:
  // `first_sequence` is set where the source must continue there.
  TokenWriter(TokenSource* source, client::CaptureCall* call, std::optional<int64_t> first_sequence)
      : source_(source), call_(call), thread_([this, first_sequence] { Run(first_sequence); }) {}

  ~TokenWriter() { Join().IgnoreError(); }

  // After the call has ended: what went wrong with the source.
  absl::Status Join() {
    if (thread_.joinable()) {
      source_->Stop();
      thread_.join();
    }
    return status_;
  }

 private:
  void Run(std::optional<int64_t> first_sequence) {
    status_ = first_sequence.has_value() ? source_->SeekTo(*first_sequence) : absl::OkStatus();
    if (status_.ok()) status_ = Write();
    if (status_.ok()) {
      call_->FinishTokens();
    } else {
      call_->Cancel();
    }
  }

  absl::Status Write() {
    v1::TokenBatch batch;
    int64_t ids = 0;
    while (true) {
      v1::TokenSequence sequence;
      ASSIGN_OR_RETURN(bool more, source_->Next(&sequence));
      const bool full =
          more && (ids + sequence.ids_size() > kMessageIds || batch.sequences_size() == kMessageSequences);
      if ((full || !more) && batch.sequences_size() > 0) {
        if (!call_->WriteTokens(batch)) return absl::OkStatus();
        batch.Clear();
        ids = 0;
      }
      if (!more) return absl::OkStatus();
      ids += sequence.ids_size();
      *batch.add_sequences() = std::move(sequence);
    }
  }

  TokenSource* const source_;
  client::CaptureCall* const call_;
  absl::Status status_;
  std::thread thread_;
};

// Statistics over the rows of both.
v1::HookPointSummary Merge(const v1::HookPointSummary& before, v1::HookPointSummary now) {
  const auto old_rows = static_cast<double>(before.statistics_rows());
  const double rows = old_rows + static_cast<double>(now.statistics_rows());
  if (rows == 0) return now;
  const auto mean = [&](double a, double b) { return (a * old_rows + b * (rows - old_rows)) / rows; };
  now.set_mean_row_norm(mean(before.mean_row_norm(), now.mean_row_norm()));
  now.set_mean(mean(before.mean(), now.mean()));
  now.set_rms(std::sqrt(mean(before.rms() * before.rms(), now.rms() * now.rms())));
  now.set_nan_count(before.nan_count() + now.nan_count());
  now.set_infinity_count(before.infinity_count() + now.infinity_count());
  now.set_statistics_rows(before.statistics_rows() + now.statistics_rows());
  return now;
}

class Runner {
 public:
  Runner(const StartCall& start_call, TokenSource* tokens, const CaptureHandlers& handlers, Progress& progress,
         Interrupt& interrupt)
      : start_call_(start_call), tokens_(tokens), handlers_(handlers), progress_(progress), interrupt_(interrupt) {}

  absl::StatusOr<CaptureResult> Run() {
    Interrupt::Listener listener(&interrupt_, [this] { CancelCall(); });
    while (true) {
      absl::Status status = OneCall();
      if (interrupt_.came()) return absl::CancelledError("interrupted; nothing was kept");
      if (status.ok()) return std::move(result_);
      if (!absl::IsUnavailable(status) || token_.empty() || failures_ == kMaxReconnects) return status;
      ++failures_;
      ++result_.reconnects;
      const absl::Duration delay = ReconnectDelay(failures_);
      progress_.Note(absl::StrCat("hookline: ", ErrorLine(status), "; continuing in ", absl::FormatDuration(delay),
                                  " (attempt ", failures_, " of ", kMaxReconnects, ")"));
      if (interrupt_.WaitFor(delay)) return absl::CancelledError("interrupted; nothing was kept");
    }
  }

 private:
  absl::Status OneCall() {
    const bool resumes = !token_.empty();
    const std::unique_ptr<client::CaptureCall> call = start_call_(token_);
    SetCall(call.get());
    const absl::Cleanup forget_call = [this] { SetCall(nullptr); };
    if (interrupt_.came()) call->Cancel();
    std::unique_ptr<TokenWriter> writer;
    absl::Status status;
    while (true) {
      absl::StatusOr<std::optional<client::CaptureEvent>> event = call->Next();
      if (!event.ok()) {
        status = event.status();
        break;
      }
      if (!event->has_value()) break;
      status = Handle(**event);
      if (!status.ok()) {
        call->Cancel();
        break;
      }
      if (const auto* started = std::get_if<v1::CaptureStarted>(&**event); started != nullptr && tokens_ != nullptr) {
        const auto first = resumes ? std::optional<int64_t>(started->next_sequence()) : std::nullopt;
        writer = std::make_unique<TokenWriter>(tokens_, call.get(), first);
      }
    }
    if (writer != nullptr) {
      // What the source says matters where it ended the call.
      absl::Status written = writer->Join();
      if (absl::IsCancelled(status) && !written.ok()) status = written;
      if (absl::IsInvalidArgument(status) && written.ok()) status = tokens_->NamePlace(status);
    }
    if (status.ok() && !ended_) return absl::InternalError("the server ended the capture without a summary");
    return status;
  }

  absl::Status Handle(const client::CaptureEvent& event) {
    if (const auto* started = std::get_if<v1::CaptureStarted>(&event)) return HandleStarted(*started);
    if (const auto* chunk = std::get_if<client::Chunk>(&event)) return HandleChunk(*chunk);
    const auto& summary = std::get<v1::CaptureSummary>(event);
    if (summary.hook_points_size() != static_cast<int>(rows_.size())) {
      return absl::InternalError(absl::StrCat("the server's summary tells of ", summary.hook_points_size(),
                                              " hook points instead of ", rows_.size()));
    }
    v1::CaptureSummary merged = summary;
    for (int i = 0; i < result_.summary.hook_points_size(); ++i) {
      *merged.mutable_hook_points(i) = Merge(result_.summary.hook_points(i), summary.hook_points(i));
    }
    result_.summary = std::move(merged);
    if (!summary.resume_token().empty()) token_ = summary.resume_token();
    ended_ = summary.stop_reason() == v1::STOP_REASON_BUDGET || summary.stop_reason() == v1::STOP_REASON_SOURCE_ENDED;
    if (!ended_) return absl::OkStatus();
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (summary.hook_points(static_cast<int>(i)).rows() != rows_[i]) {
        return absl::DataLossError(absl::StrCat(
            "of ", result_.started.hook_points(static_cast<int>(i)).hook_point(), " ", rows_[i], " rows came, but ",
            summary.hook_points(static_cast<int>(i)).rows(), " were sent by the server's account"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status HandleStarted(const v1::CaptureStarted& started) {
    token_ = started.resume_token();
    if (rows_.empty()) {
      rows_.assign(static_cast<size_t>(started.hook_points_size()), 0);
      result_.started = started;
      return handlers_.on_started(started);
    }
    const v1::CaptureStarted& before = result_.started;
    bool same = before.fingerprint() == started.fingerprint() && before.dtype() == started.dtype() &&
                before.hook_points_size() == started.hook_points_size();
    for (int i = 0; same && i < before.hook_points_size(); ++i) {
      same = google::protobuf::util::MessageDifferencer::Equals(before.hook_points(i), started.hook_points(i));
    }
    if (!same) {
      return absl::FailedPreconditionError(
          "the server that answered again grants other weights, hook points, budgets or dtype; start the capture anew");
    }
    return absl::OkStatus();
  }

  absl::Status HandleChunk(const client::Chunk& chunk) {
    const v1::ActivationChunk& header = chunk.header();
    int64_t& rows = rows_[static_cast<size_t>(chunk.hook_point_index())];
    if (header.first_row() != rows) {
      return absl::DataLossError(absl::StrCat("the server continued ", header.hook_point(), " at row ",
                                              header.first_row(), " instead of ", rows));
    }
    RETURN_IF_ERROR(handlers_.on_chunk(chunk));
    rows += header.rows();
    result_.bytes += chunk.data_bytes();
    progress_.Add(header.rows(), chunk.data_bytes());
    token_ = header.resume_token();
    failures_ = 0;
    return absl::OkStatus();
  }

  void SetCall(client::CaptureCall* call) {
    absl::MutexLock lock(&mutex_);
    call_ = call;
  }

  void CancelCall() {
    absl::MutexLock lock(&mutex_);
    if (call_ != nullptr) call_->Cancel();
  }

  const StartCall& start_call_;
  TokenSource* const tokens_;
  const CaptureHandlers& handlers_;
  Progress& progress_;
  Interrupt& interrupt_;
  CaptureResult result_;
  std::vector<int64_t> rows_;  // that came, for each hook point
  std::string token_;
  bool ended_ = false;
  int failures_ = 0;  // since the last row
  absl::Mutex mutex_;
  client::CaptureCall* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

absl::Duration ReconnectDelay(int attempt) {
  return std::min(absl::Milliseconds(250) * (1 << std::min(attempt - 1, 10)), absl::Seconds(8));
}

absl::StatusOr<CaptureResult> RunCapture(const StartCall& start_call, TokenSource* tokens,
                                         const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt) {
  return Runner(start_call, tokens, handlers, progress, interrupt).Run();
}

}  // namespace hookline::cli
