#include "client/cpp/batched_capture.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "client/cpp/row_layout.h"
#include "server/base/escape.h"

namespace hookline::client {
BatchedCapture::BatchedCapture(Connection connection, std::string method, const std::string& request,
                               bool streams_tokens)
    : connection_(std::move(connection)),
      method_(std::move(method)),
      streams_tokens_(streams_tokens),
      capture_([this](const std::string&) {  // the caller's request holds the token
        return std::make_unique<CaptureCall>(connection_, method_, first_message_, streams_tokens_);
      }) {
  StartCall(request);
}

BatchedCapture::~BatchedCapture() {
  Cancel();
  reader_.join();
}

void BatchedCapture::StartCall(const std::string& request) {
  first_message_ = request;
  if (streams_tokens_) {
    v1::CaptureStreamRequest message;
    message.mutable_request()->ParseFromString(request);
    first_message_ = message.SerializeAsString();
  }
  capture_.Call();
  absl::MutexLock lock(&mutex_);
  started_.reset();
  summary_.reset();
  over_ = false;
  status_ = absl::OkStatus();
  reader_ = std::thread([this] { Run(); });
}

void BatchedCapture::Run() {
  absl::Status status;
  while (status.ok()) {
    absl::StatusOr<std::optional<CaptureEvent>> event = capture_.Next();
    if (!event.ok()) {
      status = event.status();
    } else if (!event->has_value()) {
      break;
    } else {
      status = Take(**std::move(event));
    }
  }
  if (!status.ok()) capture_.EndCall();
  absl::MutexLock lock(&mutex_);
  if (status.ok() && !parked_.empty()) {
    status = absl::InternalError("the server broke the protocol: hook points ended with different numbers of rows");
  }
  over_ = true;
  status_ = std::move(status);
  changed_.NotifyAll();
}

absl::Status BatchedCapture::Take(CaptureEvent event) {
  if (auto* chunk = std::get_if<Chunk>(&event)) return TakeChunk(std::move(*chunk));
  absl::MutexLock lock(&mutex_);
  if (auto* started = std::get_if<v1::CaptureStarted>(&event)) {
    if (granted_ == nullptr) placed_.assign(started->hook_points_size(), 0);
    granted_ = capture_.started();
    started_ = started->SerializeAsString();
    changed_.NotifyAll();
  } else {
    summary_ = capture_.summary()->SerializeAsString();
  }
  return absl::OkStatus();
}

absl::Status BatchedCapture::TakeChunk(Chunk chunk) {
  const v1::ActivationChunk& header = chunk.header();
  if (header.values_size() > 0) {
    return absl::InvalidArgumentError("encoding: rows come as values, but batches need ENCODING_BYTES");
  }
  absl::MutexLock lock(&mutex_);
  KeepTexts(header);
  const int64_t bytes = chunk.data_bytes();
  parked_.push_back(Parked{std::move(chunk)});
  parked_bytes_ += bytes;
  while (true) {
    const int64_t submitted = submitted_rows_;
    for (auto parked = parked_.begin(); parked != parked_.end();) {
      if (CopyToBatches(*parked)) {
        parked_bytes_ -= parked->chunk.data_bytes();
        parked = parked_.erase(parked);
      } else {
        ++parked;
      }
    }
    if (parked_.empty()) return absl::OkStatus();
    if (submitted_rows_ != submitted) continue;  // a batch was submitted while rows were copied
    // The oldest batch may lack rows of other hook points that arrive after these.
    if (MustReadOn()) {
      const int64_t limit = (int64_t{granted_->hook_points_size()} + 1) * kMaxReceiveBytes;
      if (parked_bytes_ <= limit) return absl::OkStatus();
      return absl::InternalError(
          absl::StrCat("the server broke the protocol: ", parked_bytes_, " bytes came out of the order of row groups"));
    }
    changed_.WaitFor(mutex_, absl::InfiniteDuration(), [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return cancelled_ || submitted_rows_ != submitted;
    });
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
  }
}

void BatchedCapture::KeepTexts(const v1::ActivationChunk& header) {
  const int64_t end = header.first_row() + header.rows();
  if (header.token_text_size() != header.rows() || header.token_id_size() != header.rows() || end <= rows_with_texts_) {
    return;
  }
  rows_with_texts_ = end;
  for (int i = 0; i < header.token_text_size() && token_texts_.size() < kMaxTokenTexts; ++i) {
    token_texts_.try_emplace(header.token_id(i), header.token_text(i));
  }
}

bool BatchedCapture::CopyToBatches(Parked& parked) {
  const int64_t first = parked.chunk.header().first_row(), rows = parked.chunk.header().rows();
  while (parked.done < rows) {
    const int64_t row = first + parked.done;
    auto batch = std::find_if(batches_.begin(), batches_.end(), [row](const Batch& candidate) {
      return row >= candidate.first_row && row < candidate.first_row + candidate.buffers.rows;
    });
    if (batch == batches_.end()) return false;
    const int64_t count = std::min(rows - parked.done, batch->first_row + batch->buffers.rows - row);
    CopyRows(parked.chunk, parked.done, count, *batch);
    parked.done += count;
  }
  return true;
}

void BatchedCapture::CopyRows(const Chunk& chunk, int64_t from, int64_t rows, Batch& batch) {
  const int hook_point = chunk.hook_point_index();
  const int64_t row_bytes = RowBytes(hook_point);
  const int64_t at = chunk.header().first_row() + from - batch.first_row;
  const v1::ActivationChunk& header = chunk.header();
  uint8_t* const target = batch.buffers.data[hook_point] + at * row_bytes;
  // Only this thread writes to submitted batches, and a batch stays where it is until it is finished.
  mutex_.Unlock();
  chunk.CopyData(from * row_bytes, rows * row_bytes, target);
  if (batch.buffers.sequence != nullptr && header.sequence_size() == header.rows()) {
    std::copy_n(header.sequence().begin() + from, rows, batch.buffers.sequence + at);
    std::copy_n(header.position().begin() + from, rows, batch.buffers.position + at);
    std::copy_n(header.token_id().begin() + from, rows, batch.buffers.token_id + at);
  }
  mutex_.Lock();
  batch.filled[hook_point] += rows;
  placed_[hook_point] += rows;
  changed_.NotifyAll();
}

int64_t BatchedCapture::RowBytes(int hook_point) const { return LayoutOf(*granted_, hook_point).bytes(); }

bool BatchedCapture::IsFinished(const Batch& batch) const {
  for (int i = 0; i < granted_->hook_points_size(); ++i) {
    if (batch.filled[i] < batch.buffers.rows && placed_[i] < granted_->hook_points(i).max_activations()) {
      return false;
    }
  }
  return true;
}

bool BatchedCapture::AllBudgetsReached() const {
  for (int i = 0; i < granted_->hook_points_size(); ++i) {
    if (placed_[i] < granted_->hook_points(i).max_activations()) return false;
  }
  return true;
}

bool BatchedCapture::MustReadOn() const { return !batches_.empty() && !IsFinished(batches_.front()); }

absl::StatusOr<const std::string*> BatchedCapture::Started(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  changed_.WaitFor(mutex_, timeout,
                   [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return started_.has_value() || over_; });
  if (started_.has_value()) return &*started_;
  if (!over_) return nullptr;
  return status_.ok() ? absl::InternalError("the capture ended before it started") : status_;
}

int BatchedCapture::hook_points() const {
  absl::MutexLock lock(&mutex_);
  return granted_ != nullptr ? granted_->hook_points_size() : 0;
}

absl::Status BatchedCapture::Submit(const BatchBuffers& batch) {
  absl::MutexLock lock(&mutex_);
  if (granted_ == nullptr) return absl::FailedPreconditionError("submit: the capture has not started");
  if (batch.rows < 1) return absl::InvalidArgumentError(absl::StrCat("rows: ", batch.rows, " is below 1"));
  if (batch.data.size() != static_cast<size_t>(granted_->hook_points_size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("data: ", batch.data.size(), " buffers for ", granted_->hook_points_size(), " hook points"));
  }
  for (size_t i = 0; i < batch.data.size(); ++i) {
    const v1::HookPointGrant& grant = granted_->hook_points(static_cast<int>(i));
    if (batch.data[i] == nullptr && grant.max_activations() > submitted_rows_) {
      return absl::InvalidArgumentError(
          absl::StrCat("data[", i, "]: null, but rows of ", Escaped(grant.hook_point()), " are still to come"));
    }
  }
  const int columns = (batch.sequence != nullptr) + (batch.position != nullptr) + (batch.token_id != nullptr);
  if (columns != 0 && columns != 3) {
    return absl::InvalidArgumentError("sequence, position, token_id: give all of them or none");
  }
  if (batches_.size() >= kMaxSubmitted) {
    return absl::ResourceExhaustedError(
        absl::StrCat(batches_.size(), " batches are submitted; at most ", kMaxSubmitted, " are allowed"));
  }
  batches_.push_back(Batch{batch, submitted_rows_, std::vector<int64_t>(batch.data.size(), 0)});
  submitted_rows_ += batch.rows;
  ++progress_.submitted;
  changed_.NotifyAll();
  return absl::OkStatus();
}

bool BatchedCapture::HasRows(const Batch& batch) {
  return std::any_of(batch.filled.begin(), batch.filled.end(), [](int64_t rows) { return rows > 0; });
}

bool BatchedCapture::CanStopWaiting() const {
  if (over_) return true;
  if (batches_.empty()) return !AllBudgetsReached();
  return HasRows(batches_.front()) && IsFinished(batches_.front());
}

absl::StatusOr<BatchedCapture::WaitResult> BatchedCapture::Wait(absl::Duration timeout, int64_t* rows) {
  absl::MutexLock lock(&mutex_);
  if (granted_ == nullptr && !over_) return absl::FailedPreconditionError("wait: the capture has not started");
  std::fill_n(rows, placed_.size(), 0);
  auto stop = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return CanStopWaiting(); };
  if (!changed_.WaitFor(mutex_, timeout, stop)) return WaitResult::kTimeout;
  if (batches_.empty()) {
    if (!over_) return absl::FailedPreconditionError("wait: no batch is submitted, and rows are still to come");
    if (!status_.ok()) return status_;
    return WaitResult::kEnd;
  }
  const Batch& oldest = batches_.front();
  std::copy(oldest.filled.begin(), oldest.filled.end(), rows);
  if (HasRows(oldest) && (IsFinished(oldest) || (over_ && status_.ok()))) {
    batches_.pop_front();
    ++progress_.returned;
    return WaitResult::kBatch;
  }
  if (!status_.ok()) return status_;
  batches_.clear();
  return WaitResult::kEnd;
}

BatchedCapture::Progress BatchedCapture::progress() const {
  absl::MutexLock lock(&mutex_);
  return progress_;
}

absl::Status BatchedCapture::Resume(const std::string& request) {
  {
    absl::MutexLock lock(&mutex_);
    if (!over_ || status_.ok()) return absl::FailedPreconditionError("resume: the capture has not failed");
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
  }
  reader_.join();
  StartCall(request);
  return absl::OkStatus();
}

bool BatchedCapture::WriteTokens(const v1::TokenBatch& tokens) {
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return false;
  }
  return capture_.WriteTokens(tokens);
}

void BatchedCapture::FinishTokens() {
  {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
  }
  capture_.FinishTokens();
}

const std::string* BatchedCapture::TokenText(uint32_t token_id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = token_texts_.find(token_id);
  return found == token_texts_.end() ? nullptr : &found->second;
}

const std::string* BatchedCapture::Summary() const {
  absl::MutexLock lock(&mutex_);
  return summary_.has_value() ? &*summary_ : nullptr;
}

void BatchedCapture::Cancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    changed_.NotifyAll();
  }
  capture_.Cancel();
}

}  // namespace hookline::client
