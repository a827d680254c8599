// A capture that survives broken connections: it makes one call after another, each of which continues after the last
// row received.
//
//   ResumableCapture capture([&](const std::string& token) { return StartTheCallWith(token); });
//   capture.Call();
//   while (true) {
//     absl::StatusOr<std::optional<CaptureEvent>> event = capture.Next();
//     if (!event.ok()) {
//       std::optional<Reconnect> reconnect = capture.NextReconnect(event.status());
//       if (!reconnect.has_value()) return event.status();
//       absl::SleepFor(reconnect->delay);
//       capture.Call();
//     } else if (!event->has_value()) {
//       return capture.summary();
//     } else {
//       // Each row comes once, whatever happened to the connection.
//     }
//   }
#ifndef HOOKLINE_CLIENT_CPP_RESUMABLE_CAPTURE_H_
#define HOOKLINE_CLIENT_CPP_RESUMABLE_CAPTURE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/capture_call.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::client {

// The retry policy of every client of Hookline; the Python client's `Retry` has the same numbers.
//
// The most reconnects without a row between them. With the delays below they take about 50 seconds, in which a server
// that was restarted loads its model.
inline constexpr int kMaxReconnects = 10;
// This is short, so that a connection that was merely cut costs little.
inline constexpr absl::Duration kFirstReconnectDelay = absl::Milliseconds(250);
// This is long enough not to burden a server that is starting, and short enough to go unnoticed once it is up.
inline constexpr absl::Duration kMaxReconnectDelay = absl::Seconds(8);

// Returns the wait before reconnect `attempt`, counted from 1: kFirstReconnectDelay, doubled each time, at
// most kMaxReconnectDelay.
absl::Duration ReconnectDelay(int attempt);

struct Reconnect {
  int attempt = 0;  // counted from 1 since the last row
  absl::Duration delay;
};

// Call, Next and NextReconnect belong to one thread at a time; everything else may be called from any thread.
class ResumableCapture {
 public:
  // Makes one call, never null, with the resume token of the last message, which is empty for the first call.
  using StartCall = std::function<std::unique_ptr<CaptureCall>(const std::string& resume_token)>;

  explicit ResumableCapture(StartCall start_call);
  ResumableCapture(const ResumableCapture&) = delete;
  ResumableCapture& operator=(const ResumableCapture&) = delete;

  // Makes the first call, or the next one after an error of Next. After Cancel the call is cancelled at once.
  void Call();

  // Blocks for the next event of the call; none at the end of a capture that ended well. A summary is that of the call;
  // summary() merges them. Errors, after which only Call may follow: those of CaptureCall::Next; UNAVAILABLE if the
  // call ended before the capture did; INTERNAL if the rows are not the next ones; DATA_LOSS if the server counted
  // other rows than arrived; FAILED_PRECONDITION if a server grants something else after a reconnect.
  absl::StatusOr<std::optional<CaptureEvent>> Next();

  // Returns when to call again after an error of Next, but not before the time that the server gives, if any
  // (RetryAfterOf). None if the error is final: a reconnect would not help, the server never granted the capture (a
  // wrong address should fail at once), or kMaxReconnects were made.
  std::optional<Reconnect> NextReconnect(const absl::Status& error);

  // For CaptureStream: do what CaptureCall's do, for the current call.
  bool WriteTokens(const v1::TokenBatch& tokens);
  void FinishTokens();

  // Ends the current call, for a caller that cannot use one of its events; Call may follow.
  void EndCall();
  // Ends the current call and those to come with CANCELLED. Idempotent.
  void Cancel();

  // Returns the grant of the first call, which is that of every call; null before. It never changes once it is set.
  const v1::CaptureStarted* started() const;
  // Returns the merged summaries of all calls so far; none before the first. A call whose connection broke before it
  // sent a summary is not included: `statistics_rows` says how many rows the statistics cover.
  std::optional<v1::CaptureSummary> summary() const;
  // Returns the token of the last message that had one.
  std::string resume_token() const;
  // Returns the number of calls after the first.
  int reconnects() const;

 private:
  std::shared_ptr<CaptureCall> call() const;
  absl::Status Take(const CaptureEvent& event);
  absl::Status TakeStarted(const v1::CaptureStarted& started) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeChunk(const Chunk& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeSummary(const v1::CaptureSummary& summary) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const StartCall start_call_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<CaptureCall> call_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::CaptureStarted> started_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> rows_ ABSL_GUARDED_BY(mutex_);  // rows received of each hook point, over all calls
  std::optional<v1::CaptureSummary> summary_ ABSL_GUARDED_BY(mutex_);
  std::string resume_token_ ABSL_GUARDED_BY(mutex_);
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int failures_ ABSL_GUARDED_BY(mutex_) = 0;        // since the last row
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;  // the current call's summary ended the capture
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_RESUMABLE_CAPTURE_H_
