#include "server/service/recording_calls.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/service/exceptions.h"
#include "server/service/plain_call.h"
#include "server/service/status_mapping.h"
#include "server/service/wire/capture_response_encoder.h"
#include "server/service/wire/recording_conversion.h"

namespace hookline {
namespace {

// This many are enough to show that a recording is damaged all over.
constexpr int kMaxDamagedShards = 1000;
// Calls that wait for their turn hold little, but one client should not keep others waiting for hours.
constexpr int kMaxVerifications = 256;

v1::PersistDisposition ToProto(PersistDisposition disposition) {
  switch (disposition) {
    case PersistDisposition::kStarted:
      return v1::PERSIST_DISPOSITION_STARTED;
    case PersistDisposition::kJoined:
      return v1::PERSIST_DISPOSITION_JOINED;
    case PersistDisposition::kContinued:
      return v1::PERSIST_DISPOSITION_CONTINUED;
    case PersistDisposition::kAlreadyComplete:
      return v1::PERSIST_DISPOSITION_ALREADY_COMPLETE;
  }
  return v1::PERSIST_DISPOSITION_UNSPECIFIED;
}

}  // namespace

void PersistCall::Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request) {
  if (!client.ok()) return Refuse(client.status());
  absl::Status status = CatchExceptions("Persist", [&] { return Persist(client->identity, request); });
  if (!status.ok()) return Refuse(std::move(status));
  Advance();
}

absl::Status PersistCall::Persist(const ClientIdentity& client, const grpc::ByteBuffer& request) {
  ASSIGN_OR_RETURN(PersistRequest parsed, ParsePersistRequest(request, recorder_->token_limits()));
  if (!parsed.capture.record_as.empty()) {
    return InvalidField("capture.record_as", "must be empty; the recording's name is `name`");
  }
  if (!TextRequests::HasText(parsed.capture)) {
    return PersistPrepared(client, std::move(parsed));
  }
  // Texts wait in the form in which they came (TextRequests::threads).
  PostOn(&texts_->threads(), [this, client, request] {
    absl::StatusOr<PersistRequest> again = ParsePersistRequest(request, recorder_->token_limits());
    absl::Status status = again.ok() ? PersistPrepared(client, *std::move(again)) : again.status();
    if (!status.ok()) Refuse(std::move(status));
  });
  return absl::OkStatus();
}

absl::Status PersistCall::PersistPrepared(const ClientIdentity& client, PersistRequest request) {
  RETURN_IF_ERROR(texts_->Prepare(&request.capture));
  ASSIGN_OR_RETURN(Persisted persisted,
                   recorder_->Persist(request.name, std::move(request.capture), request.part, client));
  const std::shared_ptr<RecordingSession> session = persisted.session;
  int watch = -1;
  if (session != nullptr) {
    watch = session->Watch([this] {
      Post([this] {
        absl::MutexLock lock(&mutex_);
        has_news_ = true;
      });
    });
  }
  {
    absl::MutexLock lock(&mutex_);
    name_ = request.name;
    if (!finished()) {
      persisted_ = std::move(persisted);
      watch_ = watch;
      return absl::OkStatus();
    }
  }
  // The client left while its texts were encoded. Nothing may call back into the call, which ends with this task.
  if (session != nullptr) session->Unwatch(watch);
  return absl::OkStatus();
}

void PersistCall::Release() {
  std::shared_ptr<RecordingSession> session;
  int watch;
  {
    absl::MutexLock lock(&mutex_);
    if (persisted_.has_value()) session = std::move(persisted_->session);
    watch = watch_;
  }
  if (session != nullptr) session->Unwatch(watch);
}

RecordingSession::Progress PersistCall::Progress() const {
  if (persisted_->session != nullptr) return persisted_->session->progress();
  RecordingSession::Progress progress;
  progress.ended = true;
  if (const auto manifest = recorder_->catalog().Get(name_); manifest.ok()) {
    progress.rows = progress.max_rows = (*manifest)->rows();
    progress.bytes = (*manifest)->bytes();
  }
  return progress;
}

v1::PersistResponse PersistCall::Message(const RecordingSession::Progress& progress) const {
  v1::PersistResponse response;
  response.set_disposition(ToProto(persisted_->disposition));
  response.set_rows(progress.rows);
  response.set_max_rows(progress.max_rows);
  response.set_bytes(progress.bytes);
  response.set_seconds(absl::ToDoubleSeconds(progress.time));
  response.set_new_rows(progress.new_rows);
  if (progress.started.has_value() && progress.summary.has_value()) {
    *response.mutable_summary() = SummaryToProto(*progress.started, *progress.summary);
  }
  if (is_first_ || progress.ended) {
    const auto manifest = recorder_->catalog().Get(name_);
    if (manifest.ok()) *response.mutable_recording() = ToProto(**manifest, RecordingView::kFull);
  }
  return response;
}

PersistCall::Step PersistCall::NextStep() {
  if (!persisted_.has_value()) return Step::Wait();
  const RecordingSession::Progress progress = Progress();
  if (!progress.ended && (!has_news_ || !progress.started.has_value())) return Step::Wait();
  has_news_ = false;
  grpc::ByteBuffer message = Serialized(Message(progress));
  is_first_ = false;
  if (progress.ended) return Step::WriteAndFinish(message, progress.status);
  return Step::Write(message);
}

void StopCall::Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request) {
  if (!client.ok()) return Refuse(client.status());
  absl::Status status = CatchExceptions("StopRecording", [&] { return Stop(request, client->identity); });
  if (!status.ok()) return Refuse(std::move(status));
  Advance();
}

absl::Status StopCall::Stop(const grpc::ByteBuffer& request, const ClientIdentity& client) {
  ASSIGN_OR_RETURN(const v1::StopRecordingRequest parsed, ParsePlain<v1::StopRecordingRequest>(request));
  const std::string& name = parsed.name();
  RETURN_IF_ERROR(recorder_->CheckMayChange(name, client));
  const std::shared_ptr<RecordingSession> session = recorder_->Find(name);
  const int watch = session == nullptr ? -1 : session->Watch([this] { Wake(); });
  {
    absl::MutexLock lock(&mutex_);
    name_ = name;
    session_ = session;
    watch_ = watch;
  }
  if (session != nullptr) session->Stop();
  return absl::OkStatus();
}

// The recording is stopped whether or not its client waits for the answer.
StopCall::Step StopCall::NextStep() {
  if (session_ != nullptr && !session_->progress().ended) return Step::Wait();
  absl::Status status = FillResponse();
  if (status.ok()) record().AddBytes(static_cast<int64_t>(response_->Length()));
  return Step::Finish(std::move(status));
}

absl::Status StopCall::FillResponse() const {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, recorder_->catalog().Get(name_));
  *response_ = Serialized(ToProto(*manifest, RecordingView::kFull));
  return absl::OkStatus();
}

void StopCall::Release() {
  std::shared_ptr<RecordingSession> session;
  int watch;
  {
    absl::MutexLock lock(&mutex_);
    session = std::move(session_);
    watch = watch_;
  }
  if (session != nullptr) session->Unwatch(watch);
}

void VerifyCall::Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request) {
  if (!client.ok()) return Refuse(client.status());
  if (others_ >= kMaxVerifications) {
    return Refuse(absl::ResourceExhaustedError(absl::StrCat(
        others_, " verifications and merges run or wait, of at most ", kMaxVerifications, "; try again later")));
  }
  const auto parsed = ParsePlain<v1::VerifyRecordingRequest>(request);
  if (!parsed.ok()) return Refuse(parsed.status());
  Post([this, name = parsed->name()] { Open(name); });
}

void VerifyCall::Open(const std::string& name) {
  absl::StatusOr<std::shared_ptr<const RecordingReader>> reader = recorder_->catalog().OpenReader(name);
  if (!reader.ok()) return Refuse(reader.status());
  reader_ = *std::move(reader);
  {
    absl::MutexLock lock(&mutex_);
    findings_.set_total_bytes(reader_->manifest().bytes());
    if (reader_->manifest().shards.empty()) {
      has_news_ = true;
      return;
    }
  }
  CheckSlice();
}

void VerifyCall::CheckSlice() {
  size_t shard;
  {
    absl::MutexLock lock(&mutex_);
    if (finished()) return;
    shard = next_shard_;
  }
  absl::StatusOr<bool> checked = false;
  if (check_ == nullptr) {
    absl::StatusOr<std::unique_ptr<ShardCheck>> check = reader_->BeginVerify(shard);
    if (check.ok()) {
      check_ = *std::move(check);
    } else {
      checked = check.status();
    }
  } else {
    checked = check_->Advance();
  }
  if (checked.ok() && !*checked) return Post([this] { CheckSlice(); });
  check_.reset();
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = AddShard(checked);
  }
  if (!status.ok()) Refuse(std::move(status));
}

absl::Status VerifyCall::AddShard(const absl::StatusOr<bool>& checked) {
  if (!checked.ok()) {
    ASSIGN_OR_RETURN(const ShardDamage damage, reader_->DamageOf(next_shard_, checked.status()));
    v1::DamagedShard& damaged = *findings_.add_damaged();
    damaged.set_file(damage.file);
    damaged.set_error(damage.error);
  }
  findings_.set_bytes(findings_.bytes() + reader_->manifest().shards[next_shard_].bytes);
  findings_.set_shards(static_cast<int32_t>(++next_shard_));
  has_news_ = true;
  return absl::OkStatus();
}

VerifyCall::Step VerifyCall::NextStep() {
  if (!has_news_) return Step::Wait();
  has_news_ = false;
  if (next_shard_ == reader_->manifest().shards.size() || findings_.damaged_size() == kMaxDamagedShards) {
    findings_.set_done(true);
    return Step::WriteAndFinish(Serialized(findings_), absl::OkStatus());
  }
  v1::VerifyRecordingResponse progress = findings_;
  progress.clear_damaged();
  return Step::Write(Serialized(progress));
}

void VerifyCall::Written() {
  Post([this] { CheckSlice(); });
}

void ReadCall::Begin(const absl::StatusOr<AuthClient>& client, Recorder* recorder, TaskThreads* disk,
                     const grpc::ByteBuffer& message) {
  if (!client.ok()) return Refuse(client.status());
  disk->Post([self = shared_from_this(), this, recorder, disk, message] {
    absl::Status status = CatchExceptions("ReadRecording", [&] { return Open(recorder->catalog(), disk, message); });
    if (!status.ok()) Refuse(std::move(status));
  });
}

absl::Status ReadCall::Open(Catalog& catalog, TaskThreads* disk, const grpc::ByteBuffer& message) {
  ASSIGN_OR_RETURN(const v1::ReadRecordingRequest request, ParsePlain<v1::ReadRecordingRequest>(message));
  ASSIGN_OR_RETURN(const ReplayRequest replay, FromProto(request));
  ASSIGN_OR_RETURN(std::shared_ptr<const RecordingReader> reader, catalog.OpenReader(request.name()));
  ASSIGN_OR_RETURN(
      std::shared_ptr<Capture> capture,
      StartReplay(std::move(reader), replay,
                  {[disk](std::function<void()> step) { disk->Post(std::move(step)); }, callbacks().on_ready}));
  Run(std::move(capture), replay.encoding);
  return absl::OkStatus();
}

}  // namespace hookline
