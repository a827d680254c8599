#include "client/cli/capture_run.h"

#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cli/exit_code.h"
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
  TokenWriter(TokenSource* source, client::ResumableCapture* capture, std::optional<int64_t> first_sequence)
      : source_(source), capture_(capture), thread_([this, first_sequence] { Run(first_sequence); }) {}

  ~TokenWriter() { Join().IgnoreError(); }

  // Returns what went wrong with the source, once the call has ended.
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
      capture_->FinishTokens();
    } else {
      capture_->EndCall();
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
        if (!capture_->WriteTokens(batch)) return absl::OkStatus();
        batch.Clear();
        ids = 0;
      }
      if (!more) return absl::OkStatus();
      ids += sequence.ids_size();
      *batch.add_sequences() = std::move(sequence);
    }
  }

  TokenSource* const source_;
  client::ResumableCapture* const capture_;
  absl::Status status_;
  std::thread thread_;
};

class Runner {
 public:
  Runner(const client::ResumableCapture::StartCall& start_call, TokenSource* tokens, const CaptureHandlers& handlers,
         Progress& progress, Interrupt& interrupt)
      : capture_(start_call), tokens_(tokens), handlers_(handlers), progress_(progress), interrupt_(interrupt) {}

  absl::StatusOr<CaptureResult> Run() {
    Interrupt::Listener listener(&interrupt_, [this] { capture_.Cancel(); });
    while (true) {
      absl::Status status = OneCall();
      if (interrupt_.came()) return Interrupted();
      if (status.ok()) return Result();
      const std::optional<client::Reconnect> reconnect = capture_.NextReconnect(status);
      if (!reconnect.has_value()) return status;
      progress_.Note(absl::StrCat("hookline: ", ErrorLine(status), "; continuing in ",
                                  absl::FormatDuration(reconnect->delay), " (attempt ", reconnect->attempt, " of ",
                                  client::kMaxReconnects, ")"));
      if (interrupt_.WaitFor(reconnect->delay)) return Interrupted();
    }
  }

 private:
  static absl::Status Interrupted() { return absl::CancelledError("interrupted; nothing was kept"); }

  CaptureResult Result() const { return {*capture_.started(), *capture_.summary(), bytes_, capture_.reconnects()}; }

  absl::Status OneCall() {
    capture_.Call();
    std::unique_ptr<TokenWriter> writer;
    absl::Status status;
    while (status.ok()) {
      absl::StatusOr<std::optional<client::CaptureEvent>> event = capture_.Next();
      if (!event.ok()) {
        status = event.status();
        break;
      }
      if (!event->has_value()) break;
      status = Handle(**event);
      if (!status.ok()) capture_.EndCall();
      const auto* started = std::get_if<v1::CaptureStarted>(&**event);
      if (status.ok() && started != nullptr && tokens_ != nullptr) {
        const auto first = started_calls_ > 1 ? std::optional<int64_t>(started->next_sequence()) : std::nullopt;
        writer = std::make_unique<TokenWriter>(tokens_, &capture_, first);
      }
    }
    if (writer != nullptr) {
      // The source's error matters where it ended the call.
      absl::Status written = writer->Join();
      if (absl::IsCancelled(status) && !written.ok()) status = written;
      if (absl::IsInvalidArgument(status) && written.ok()) status = tokens_->NamePlace(status);
    }
    return status;
  }

  absl::Status Handle(const client::CaptureEvent& event) {
    if (const auto* started = std::get_if<v1::CaptureStarted>(&event)) {
      return ++started_calls_ > 1 ? absl::OkStatus() : handlers_.on_started(*started);
    }
    const auto* chunk = std::get_if<client::Chunk>(&event);
    if (chunk == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(handlers_.on_chunk(*chunk));
    bytes_ += chunk->data_bytes();
    progress_.Add(chunk->header().rows(), chunk->data_bytes());
    return absl::OkStatus();
  }

  client::ResumableCapture capture_;
  TokenSource* const tokens_;
  const CaptureHandlers& handlers_;
  Progress& progress_;
  Interrupt& interrupt_;
  int64_t bytes_ = 0;
  int started_calls_ = 0;  // that the server has accepted
};

}  // namespace

absl::StatusOr<CaptureResult> RunCapture(const client::ResumableCapture::StartCall& start_call, TokenSource* tokens,
                                         const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt) {
  return Runner(start_call, tokens, handlers, progress, interrupt).Run();
}

}  // namespace hookline::cli
