#include "client/cpp/resumable_capture.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "client/cpp/merge_summaries.h"
#include "server/base/escape.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

absl::Status SameCapture(const v1::CaptureStarted& before, const v1::CaptureStarted& now) {
  auto differs = [](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat("after the reconnect the server grants a different ", what, "; start the capture again"));
  };
  if (before.fingerprint() != now.fingerprint()) return differs("fingerprint, which means different weights");
  if (before.dtype() != now.dtype()) return differs("dtype");
  if (before.top_k() != now.top_k()) return differs("top_k");
  if (before.hook_points_size() != now.hook_points_size()) return differs("number of hook_points");
  for (int i = 0; i < now.hook_points_size(); ++i) {
    const v1::HookPointGrant &a = before.hook_points(i), &b = now.hook_points(i);
    if (a.hook_point() != b.hook_point() || a.width() != b.width() || a.max_activations() != b.max_activations()) {
      return differs(absl::StrCat("hook point: ", Escaped(b.hook_point()), " with width ", b.width(), " and budget ",
                                  b.max_activations(), " instead of ", Escaped(a.hook_point()), " with ", a.width(),
                                  " and ", a.max_activations()));
    }
  }
  return absl::OkStatus();
}

// Returns whether rows are still to come after a call that ended for this reason. An unknown reason ends a capture.
bool IsCutShort(v1::StopReason reason) {
  return reason == v1::STOP_REASON_CANCELLED || reason == v1::STOP_REASON_SHUTTING_DOWN ||
         reason == v1::STOP_REASON_ERROR;
}

}  // namespace

absl::Duration ReconnectDelay(int attempt) {
  // This many doublings reach the maximum, whatever the delay begins with.
  constexpr int kMaxDoublings = 10;
  return std::min(kFirstReconnectDelay * (1 << std::clamp(attempt - 1, 0, kMaxDoublings)), kMaxReconnectDelay);
}

ResumableCapture::ResumableCapture(StartCall start_call) : start_call_(std::move(start_call)) {}

void ResumableCapture::Call() {
  // The lock is not held, because connecting takes seconds if the server does not answer.
  std::shared_ptr<CaptureCall> call = start_call_(resume_token());
  absl::MutexLock lock(&mutex_);
  call_ = std::move(call);
  ++calls_;
  has_ended_ = false;
  if (cancelled_) call_->Cancel();
}

std::shared_ptr<CaptureCall> ResumableCapture::call() const {
  absl::MutexLock lock(&mutex_);
  return call_;
}

absl::StatusOr<std::optional<CaptureEvent>> ResumableCapture::Next() {
  const std::shared_ptr<CaptureCall> call = this->call();
  ASSIGN_OR_RETURN(std::optional<CaptureEvent> event, call->Next());
  if (event.has_value()) {
    if (absl::Status status = Take(*event); !status.ok()) {
      call->Cancel();
      return status;
    }
    return event;
  }
  absl::MutexLock lock(&mutex_);
  if (!has_ended_) return absl::UnavailableError("the server ended the stream without a summary of the whole capture");
  return std::nullopt;
}

absl::Status ResumableCapture::Take(const CaptureEvent& event) {
  absl::MutexLock lock(&mutex_);
  if (const auto* chunk = std::get_if<Chunk>(&event)) return TakeChunk(*chunk);
  if (const auto* started = std::get_if<v1::CaptureStarted>(&event)) return TakeStarted(*started);
  return TakeSummary(std::get<v1::CaptureSummary>(event));
}

absl::Status ResumableCapture::TakeStarted(const v1::CaptureStarted& started) {
  if (started_.has_value()) {
    RETURN_IF_ERROR(SameCapture(*started_, started));
  } else {
    rows_.assign(static_cast<size_t>(started.hook_points_size()), 0);
    started_ = started;
  }
  if (!started.resume_token().empty()) resume_token_ = started.resume_token();
  return absl::OkStatus();
}

absl::Status ResumableCapture::TakeChunk(const Chunk& chunk) {
  const v1::ActivationChunk& header = chunk.header();
  int64_t& rows = rows_[static_cast<size_t>(chunk.hook_point_index())];
  if (header.first_row() != rows) {
    return absl::InternalError(absl::StrCat("the server broke the protocol: row ", header.first_row(), " of ",
                                            Escaped(header.hook_point()), " came instead of row ", rows));
  }
  rows += header.rows();
  failures_ = 0;
  if (!header.resume_token().empty()) resume_token_ = header.resume_token();
  return absl::OkStatus();
}

absl::Status ResumableCapture::TakeSummary(const v1::CaptureSummary& summary) {
  if (summary.hook_points_size() != started_->hook_points_size()) {
    return absl::InternalError(absl::StrCat("the server broke the protocol: its summary has ",
                                            summary.hook_points_size(), " hook points instead of ",
                                            started_->hook_points_size()));
  }
  if (!summary.resume_token().empty()) resume_token_ = summary.resume_token();
  summary_ = summary_.has_value() ? MergeSummaries(*started_, *summary_, summary) : summary;
  if (IsCutShort(summary.stop_reason())) return absl::OkStatus();
  has_ended_ = true;
  for (int i = 0; i < summary.hook_points_size(); ++i) {
    if (summary.hook_points(i).mean_vector_size() > 0) continue;  // statistics_only sends no rows
    if (const int64_t rows = rows_[static_cast<size_t>(i)]; summary.hook_points(i).rows() != rows) {
      return absl::DataLossError(absl::StrCat(Escaped(started_->hook_points(i).hook_point()), ": ", rows,
                                              " rows came, but the server says that it sent ",
                                              summary.hook_points(i).rows()));
    }
  }
  return absl::OkStatus();
}

std::optional<Reconnect> ResumableCapture::NextReconnect(const absl::Status& error) {
  absl::MutexLock lock(&mutex_);
  if (failures_ == kMaxReconnects) return std::nullopt;
  // The server refused because of a quota or a full queue, and said when to try again.
  if (const std::optional<absl::Duration> retry_after = RetryAfterOf(error); retry_after.has_value()) {
    ++failures_;
    return Reconnect{failures_, std::max(*retry_after, ReconnectDelay(failures_))};
  }
  if (!absl::IsUnavailable(error) || resume_token_.empty()) return std::nullopt;
  ++failures_;
  return Reconnect{failures_, ReconnectDelay(failures_)};
}

bool ResumableCapture::WriteTokens(const v1::TokenBatch& tokens) { return call()->WriteTokens(tokens); }

void ResumableCapture::FinishTokens() { call()->FinishTokens(); }

void ResumableCapture::EndCall() { call()->Cancel(); }

void ResumableCapture::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (call_ != nullptr) call_->Cancel();
}

const v1::CaptureStarted* ResumableCapture::started() const {
  absl::MutexLock lock(&mutex_);
  return started_.has_value() ? &*started_ : nullptr;
}

std::optional<v1::CaptureSummary> ResumableCapture::summary() const {
  absl::MutexLock lock(&mutex_);
  return summary_;
}

std::string ResumableCapture::resume_token() const {
  absl::MutexLock lock(&mutex_);
  return resume_token_;
}

int ResumableCapture::reconnects() const {
  absl::MutexLock lock(&mutex_);
  return std::max(calls_ - 1, 0);
}

}  // namespace hookline::client
