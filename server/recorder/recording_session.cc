#include "server/recorder/recording_session.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/recorder/recording_request.h"
#include "server/recording/merge_plan.h"

namespace hookline {
namespace {

// This is often enough for a progress bar.
constexpr absl::Duration kProgressInterval = absl::Seconds(1);

absl::Status StoppedStatus(const std::string& name) {
  return absl::CancelledError(absl::StrCat("recording ", name, " was stopped; the same request continues it"));
}

absl::Status InterruptedStatus(const std::string& name) {
  return absl::UnavailableError(
      absl::StrCat("recording ", name, " was interrupted by the server's shutdown; the same request continues it"));
}

absl::Status RemovedError(const std::string& name) {
  return absl::AbortedError(absl::StrCat("recording ", name, " was removed before it was continued; ask again"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<RecordingSession>> RecordingSession::Start(Engine* engine, Catalog* catalog,
                                                                          Options options,
                                                                          const ClientIdentity& client) {
  std::shared_ptr<RecordingSession> session(new RecordingSession(catalog, std::move(options), client));
  RecordingSession* self = session.get();
  CaptureCallbacks callbacks;
  callbacks.on_ready = [self] { self->Wake(); };
  callbacks.on_source_room = [self] {
    absl::MutexLock lock(&self->callback_mutex_);
    if (self->client_callbacks_.on_source_room) self->client_callbacks_.on_source_room();
  };
  ASSIGN_OR_RETURN(session->capture_, engine->Start(std::move(session->options_.plan), client, std::move(callbacks)));
  session->thread_ = std::thread([self] { self->Run(); });
  return session;
}

RecordingSession::RecordingSession(Catalog* catalog, Options options, const ClientIdentity& client)
    : catalog_(catalog),
      options_(std::move(options)),
      client_(client.is_authenticated ? client.name : ""),
      begin_(SteadyNow()),
      started_(options_.plan.Started()),
      client_callbacks_(std::move(options_.client_callbacks)) {
  if (!options_.continues) {
    new_manifest_ = ManifestOf(options_.name, options_.request_digest, options_.plan);
    if (options_.part.has_value()) new_manifest_->source["part"] = PartJson(*options_.part);
    new_manifest_->client = client_;
  }
  progress_.max_rows = options_.expected_rows;
}

RecordingSession::~RecordingSession() {
  if (!thread_.joinable()) return;
  Interrupt();
  thread_.join();
}

RecordingSession::Progress RecordingSession::progress() const {
  absl::MutexLock lock(&mutex_);
  Progress progress = progress_;
  if (!progress.ended) progress.time = SteadyNow() - begin_;
  return progress;
}

void RecordingSession::WaitUntilEnded() const { absl::MutexLock lock(&mutex_, absl::Condition(&progress_.ended)); }

int RecordingSession::Watch(std::function<void()> changed) {
  absl::MutexLock lock(&callback_mutex_);
  watches_[next_watch_] = std::move(changed);
  return next_watch_++;
}

void RecordingSession::Unwatch(int watch) {
  absl::MutexLock lock(&callback_mutex_);
  watches_.erase(watch);
}

void RecordingSession::Stop() {
  absl::MutexLock lock(&mutex_);
  if (wish_ == Wish::kGoOn) wish_ = Wish::kStop;
}

void RecordingSession::Interrupt() {
  absl::MutexLock lock(&mutex_);
  wish_ = Wish::kInterrupt;
}

void RecordingSession::Wake() {
  absl::MutexLock lock(&mutex_);
  ready_ = true;
}

std::optional<CaptureEvent> RecordingSession::NextForClient() {
  absl::MutexLock lock(&mutex_);
  if (for_client_.empty()) return std::nullopt;
  CaptureEvent event = std::move(for_client_.front());
  for_client_.pop_front();
  return event;
}

void RecordingSession::ClientLeft() {
  {
    absl::MutexLock lock(&callback_mutex_);
    client_callbacks_ = {};
  }
  std::deque<CaptureEvent> dropped;  // returning slabs wakes the engine, so this is destroyed without the mutex
  absl::MutexLock lock(&mutex_);
  dropped.swap(for_client_);
  client_left_ = true;
  if (wish_ == Wish::kGoOn) wish_ = Wish::kStop;
}

void RecordingSession::Run() {
  last_token_ = started_.resume_token;
  for (const auto& point : started_.hook_points) rows_.push_back(point.rows);
  if (absl::Status status = Begin(); !status.ok()) return EndEarly(RecordingState::kFailed, std::move(status));
  Notify();
  while (true) {
    Wish wish;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ready_ || wish_ == Wish::kInterrupt || (wish_ == Wish::kStop && !inside_group_);
      };
      mutex_.Await(absl::Condition(&has_work));
      ready_ = false;
      wish = wish_;
    }
    if (wish == Wish::kInterrupt) {
      return EndEarly(RecordingState::kInterrupted, InterruptedStatus(options_.name));
    }
    if (wish == Wish::kStop && !inside_group_) {
      return EndEarly(RecordingState::kStopped, StoppedStatus(options_.name));
    }
    std::optional<CaptureEvent> event = capture_->Next();
    if (!event.has_value()) continue;
    if (Handle(*std::move(event))) return;
    absl::MutexLock lock(&mutex_);
    ready_ = true;
  }
}

bool RecordingSession::Handle(CaptureEvent event) {
  if (std::holds_alternative<CaptureStarted>(event)) {
    admitted_ = true;
  } else if (auto* chunk = std::get_if<Chunk>(&event)) {
    if (absl::Status status = Record(*chunk); !status.ok()) {
      EndEarly(RecordingState::kFailed, std::move(status));
      return true;
    }
    rows_[chunk->hook_point] = chunk->first_row + chunk->rows;
    last_token_ = chunk->resume_token;
    if (!options_.client_wants_provenance) chunk->provenance = nullptr;
  } else {
    auto& ended = std::get<CaptureEnded>(event);
    RecordingState state = RecordingState::kFailed;
    if (ended.stop_reason == StopReason::kShuttingDown) {
      state = RecordingState::kInterrupted;
    } else if (ended.stop_reason == StopReason::kCancelled) {
      state = RecordingState::kStopped;
    } else if (ended.status.ok()) {
      state = RecordingState::kComplete;
    }
    End(state, std::move(ended));
    return true;
  }
  HandOn(std::move(event));
  if (SteadyNow() - last_notify_ >= kProgressInterval) Notify();
  return false;
}

absl::Status RecordingSession::Begin() {
  if (options_.continues) {
    const absl::StatusOr<std::shared_ptr<const Manifest>> found = catalog_->Get(options_.name);
    if (absl::IsNotFound(found.status())) return RemovedError(options_.name);
    RETURN_IF_ERROR(found.status());
    const std::shared_ptr<const Manifest>& manifest = *found;
    RETURN_IF_ERROR(CheckContinues(*manifest, started_));
    std::optional<ResumePoint> resume;
    if (options_.has_client) {
      // The token may lie inside a row group whose chunks were recorded before the client had them.
      resume.emplace();
      for (const auto& point : started_.hook_points) resume->row = std::max(resume->row, point.rows);
      resume->token = started_.resume_token;
    }
    absl::StatusOr<std::unique_ptr<RecordingWriter>> writer = catalog_->Continue(options_.name, resume);
    if (absl::IsNotFound(writer.status())) return RemovedError(options_.name);
    ASSIGN_OR_RETURN(writer_, std::move(writer));
  } else {
    ASSIGN_OR_RETURN(writer_, catalog_->Create(*std::move(new_manifest_)));
  }
  absl::MutexLock lock(&mutex_);
  progress_.started = started_;
  progress_.rows = rows_at_begin_ = writer_->rows();
  progress_.bytes = writer_->bytes();
  return absl::OkStatus();
}

absl::Status RecordingSession::Record(const Chunk& chunk) {
  if (chunk.provenance == nullptr) return absl::InternalError("a chunk to record has no provenance");
  std::vector<absl::Span<const uint8_t>> data;
  for (const SlabSpan& span : chunk.data) data.emplace_back(span.data(), span.bytes);
  RowsToRecord rows;
  rows.hook_point = chunk.hook_point;
  rows.first_row = chunk.first_row;
  rows.rows = chunk.rows;
  rows.data = data;
  rows.sequence = chunk.provenance->sequence;
  rows.position = chunk.provenance->position;
  rows.token_id = chunk.provenance->token_id;
  rows.resume_token = chunk.resume_token;
  RETURN_IF_ERROR(writer_->Append(rows));
  int last = 0;
  for (size_t i = 0; i < started_.hook_points.size(); ++i) {
    if (started_.hook_points[i].max_activations > chunk.first_row) last = static_cast<int>(i);
  }
  absl::MutexLock lock(&mutex_);
  inside_group_ = chunk.hook_point != last;
  progress_.rows = writer_->rows();
  progress_.new_rows = progress_.rows - rows_at_begin_;
  progress_.bytes = writer_->bytes();
  return absl::OkStatus();
}

void RecordingSession::EndEarly(RecordingState state, absl::Status status) {
  CaptureEnded ended;
  ended.stop_reason = state == RecordingState::kStopped       ? StopReason::kCancelled
                      : state == RecordingState::kInterrupted ? StopReason::kShuttingDown
                                                              : StopReason::kError;
  ended.status = std::move(status);
  for (int64_t rows : rows_) ended.hook_points.emplace_back().rows = rows;
  ended.total_time = SteadyNow() - begin_;
  ended.resume_token = last_token_;
  End(state, std::move(ended));
}

void RecordingSession::End(RecordingState state, CaptureEnded ended) {
  capture_->Cancel();
  if (writer_ != nullptr) {
    const absl::Status error = state == RecordingState::kFailed ? ended.status : absl::OkStatus();
    const absl::Status closed = writer_->Close(state, error);
    if (!closed.ok() && (ended.status.ok() || state != RecordingState::kFailed)) {
      ended.status = closed;
      ended.stop_reason = StopReason::kError;
    }
    writer_.reset();
    // A client that left before its capture was admitted has no token that could continue a new recording.
    bool left;
    {
      absl::MutexLock lock(&mutex_);
      left = client_left_;
    }
    if (left && !admitted_ && !options_.continues) catalog_->Delete(options_.name).status().IgnoreError();
  }
  {
    absl::MutexLock lock(&mutex_);
    progress_.time = SteadyNow() - begin_;
    progress_.status = ended.status;
    progress_.summary = ended;
    progress_.ended = true;
  }
  HandOn(std::move(ended));
  Notify();
}

void RecordingSession::HandOn(CaptureEvent event) {
  if (!options_.has_client) return;
  {
    absl::MutexLock lock(&mutex_);
    if (client_left_) return;
    for_client_.push_back(std::move(event));
  }
  absl::MutexLock lock(&callback_mutex_);
  if (client_callbacks_.on_ready) client_callbacks_.on_ready();
}

void RecordingSession::Notify() {
  last_notify_ = SteadyNow();
  absl::MutexLock lock(&callback_mutex_);
  for (const auto& [watch, changed] : watches_) changed();
}

}  // namespace hookline
