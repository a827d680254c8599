#include "client/cli/capture_run.h"

#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cli/exit_code.h"
#include "client/cpp/sequence_blocks.h"
#include "client/cpp/shared_capture.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// Sends sequences from a thread of its own, until the source or the call ends.
class TokenWriter {
 public:
  // If `first_sequence` is set, the source continues with that sequence.
  TokenWriter(TokenSource* source, client::ResumableCapture* capture, std::optional<int64_t> first_sequence)
      : source_(source), capture_(capture), thread_([this, first_sequence] { Run(first_sequence); }) {}

  ~TokenWriter() { Join().IgnoreError(); }

  // Stops the thread and returns the source's error. Called once the call has ended.
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
    client::TokenMessages messages([this](v1::TokenSequence* sequence) { return source_->Next(sequence); },
                                   client::kMessageIds);
    v1::TokenBatch message;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, messages.Next(&message));
      if (!more || !capture_->WriteTokens(message)) return absl::OkStatus();
    }
  }

  TokenSource* const source_;
  client::ResumableCapture* const capture_;
  absl::Status status_;
  std::thread thread_;
};

absl::Status Interrupted() { return absl::CancelledError("interrupted; nothing was kept"); }

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
      // A source that failed has ended the call with CANCELLED; its own error says why.
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
  int started_calls_ = 0;  // calls that the server has accepted
};

// Runs a capture over several servers to its end.
absl::Status RunStarted(client::SharedCapture& capture, const CaptureHandlers& handlers, Progress& progress,
                        CaptureResult* result) {
  RETURN_IF_ERROR(capture.Start());
  result->started = capture.started();
  RETURN_IF_ERROR(handlers.on_started(result->started));
  for (const std::string& away : capture.away()) {
    progress.Note(absl::StrCat("hookline: the capture begins without ", away));
  }
  while (true) {
    ASSIGN_OR_RETURN(const std::optional<client::Chunk> chunk, capture.Next());
    if (!chunk.has_value()) break;
    RETURN_IF_ERROR(handlers.on_chunk(*chunk));
    result->bytes += chunk->data_bytes();
    progress.Add(chunk->header().rows(), chunk->data_bytes());
  }
  result->summary = capture.summary();
  result->reconnects = capture.reruns();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CaptureResult> RunCapture(const client::ResumableCapture::StartCall& start_call, TokenSource* tokens,
                                         const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt) {
  return Runner(start_call, tokens, handlers, progress, interrupt).Run();
}

absl::StatusOr<CaptureResult> RunSharedCapture(std::vector<client::NamedServer> servers,
                                               const v1::CaptureRequest& request, TokenSource* tokens,
                                               const CaptureHandlers& handlers, Progress& progress,
                                               Interrupt& interrupt) {
  client::NextSequence next_sequence;
  if (tokens != nullptr) next_sequence = [tokens](v1::TokenSequence* sequence) { return tokens->Next(sequence); };
  auto capture = std::make_unique<client::SharedCapture>(std::move(servers), request, next_sequence);
  CaptureResult result;
  absl::Status status;
  {
    Interrupt::Listener listener(&interrupt, [&capture] { capture->Cancel(); });
    status = RunStarted(*capture, handlers, progress, &result);
  }
  // The capture's destructor waits for the thread that reads the tokens; only then may this thread use them.
  if (tokens != nullptr) tokens->Stop();
  capture.reset();
  if (interrupt.came()) return Interrupted();
  if (tokens != nullptr && absl::IsInvalidArgument(status)) return tokens->NamePlace(status);
  RETURN_IF_ERROR(status);
  return result;
}

}  // namespace hookline::cli
