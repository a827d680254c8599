#include "server/service/recording_calls.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "grpcpp/support/slice.h"
#include "server/base/status.h"
#include "server/service/capture_response_encoder.h"
#include "server/service/exceptions.h"
#include "server/service/recording_conversion.h"
#include "server/service/request_parser.h"
#include "server/service/status_mapping.h"

namespace hookline {
namespace {

// Of a recording that is damaged all over, enough to see that it is.
constexpr int kMaxDamagedShards = 1000;
// Those that wait for their turn hold little, but one client should not keep others waiting for hours.
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

void PersistCall::Begin(const std::string& address, const grpc::ByteBuffer& request) {
  self_ = shared_from_this();
  absl::Status status = CatchExceptions("Persist", [&] { return Persist(address, request); });
  {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(status);
    began_ = true;
  }
  Advance();
}

absl::Status PersistCall::Persist(const std::string& address, const grpc::ByteBuffer& request) {
  ASSIGN_OR_RETURN(PersistRequest parsed, ParsePersistRequest(request, recorder_->token_limits()));
  if (!parsed.capture.record_as.empty()) {
    return InvalidField("capture.record_as", "must be empty; the recording's name is `name`");
  }
  ASSIGN_OR_RETURN(Persisted persisted, recorder_->Persist(parsed.name, std::move(parsed.capture), address));
  const std::shared_ptr<RecordingSession> session = persisted.session;
  int watch = -1;
  if (session != nullptr) {
    watch = session->Watch([this] {
      wakes_->Post([self = shared_from_this()] {
        {
          absl::MutexLock lock(&self->mutex_);
          self->news_ = true;
        }
        self->Advance();
      });
    });
  }
  absl::MutexLock lock(&mutex_);
  name_ = parsed.name;
  persisted_ = std::move(persisted);
  watch_ = watch;
  return absl::OkStatus();
}

void PersistCall::OnWriteDone(bool /*ok: OnCancel tells*/) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
  }
  Advance();
}

void PersistCall::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  Advance();
}

void PersistCall::OnDone() {
  std::shared_ptr<RecordingSession> session;
  int watch;
  {
    absl::MutexLock lock(&mutex_);
    session = std::move(persisted_.session);
    watch = watch_;
  }
  if (session != nullptr) session->Unwatch(watch);
  self_.reset();
}

void PersistCall::AddRecording(v1::PersistResponse& response) const {
  const auto manifest = recorder_->catalog().Get(name_);
  if (manifest.ok()) *response.mutable_recording() = ToProto(**manifest, RecordingView::kFull);
}

v1::PersistResponse PersistCall::Message(const RecordingSession::Progress& progress) const {
  v1::PersistResponse response;
  response.set_disposition(ToProto(persisted_.disposition));
  response.set_rows(progress.rows);
  response.set_max_rows(progress.max_rows);
  response.set_bytes(progress.bytes);
  response.set_seconds(absl::ToDoubleSeconds(progress.time));
  response.set_new_rows(progress.new_rows);
  if (progress.started.has_value() && progress.summary.has_value()) {
    *response.mutable_summary() = SummaryToProto(*progress.started, *progress.summary);
  }
  return response;
}

void PersistCall::Advance() {
  const absl::Status status = CatchExceptions("Persist", [this] { TryAdvance(); });
  if (status.ok()) return;
  absl::MutexLock lock(&mutex_);
  refusal_ = status;
  if (writing_ || finished_) return;
  finished_ = true;
  Finish(ToGrpc(status));
}

void PersistCall::TryAdvance() {
  absl::MutexLock lock(&mutex_);
  if (writing_ || finished_ || !began_) return;
  if (cancelled_) {
    finished_ = true;
    return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled; the recording goes on"));
  }
  if (!refusal_.ok()) {
    finished_ = true;
    return Finish(ToGrpc(refusal_));
  }
  RecordingSession::Progress progress;
  if (persisted_.session != nullptr) {
    progress = persisted_.session->progress();
  } else {
    progress.ended = true;
    if (const auto manifest = recorder_->catalog().Get(name_); manifest.ok()) {
      progress.rows = progress.max_rows = (*manifest)->rows();
      progress.bytes = (*manifest)->bytes();
    }
  }
  if (!progress.ended && (!news_ || !progress.started.has_value())) return;
  news_ = false;
  v1::PersistResponse response = Message(progress);
  if (is_first_ || progress.ended) AddRecording(response);
  is_first_ = false;
  grpc::Slice slice(response.SerializeAsString());
  message_ = grpc::ByteBuffer(&slice, 1);
  if (progress.ended) {
    finished_ = true;
    return StartWriteAndFinish(&message_, grpc::WriteOptions(), ToGrpc(progress.status));
  }
  StartWrite(&message_);
  writing_ = true;  // which OnWriteDone ends, after the mutex is free
}

void StopCall::Begin(const std::string& name) {
  self_ = shared_from_this();
  name_ = name;
  std::shared_ptr<RecordingSession> session = recorder_->Find(name);
  if (session != nullptr) {
    const int watch = session->Watch([this] { wakes_->Post([self = shared_from_this()] { self->FinishIfEnded(); }); });
    absl::MutexLock lock(&mutex_);
    session_ = session;
    watch_ = watch;
  }
  if (session != nullptr) session->Stop();
  FinishIfEnded();
}

void StopCall::FinishIfEnded() {
  absl::MutexLock lock(&mutex_);
  if (finished_ || (session_ != nullptr && !session_->progress().ended)) return;
  finished_ = true;
  Finish(ToGrpc(CatchExceptions("StopRecording", [this]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, recorder_->catalog().Get(name_));
    *response_ = ToProto(*manifest, RecordingView::kFull);
    return absl::OkStatus();
  })));
}

void StopCall::OnDone() {
  std::shared_ptr<RecordingSession> session;
  int watch;
  {
    absl::MutexLock lock(&mutex_);
    finished_ = true;
    session = std::move(session_);
    watch = watch_;
  }
  if (session != nullptr) session->Unwatch(watch);
  self_.reset();
}

void VerifyCall::Begin(const std::string& name) {
  self_ = shared_from_this();
  name_ = name;
  if (const int others = (*running_)++; others >= kMaxVerifications) {
    return End(ToGrpc(absl::ResourceExhaustedError(
        absl::StrCat(others, " verifications run or wait, of at most ", kMaxVerifications, "; try again later"))));
  }
  Post(&VerifyCall::Open);
}

void VerifyCall::Post(void (VerifyCall::*action)()) {
  disk_->Post([self = shared_from_this(), action] {
    const absl::Status status = CatchExceptions("VerifyRecording", [&] { (self.get()->*action)(); });
    if (!status.ok()) self->End(ToGrpc(status));
  });
}

void VerifyCall::OnCancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
}

void VerifyCall::Open() {
  auto reader = recorder_->catalog().OpenReader(name_);
  if (!reader.ok()) return End(ToGrpc(reader.status()));
  reader_ = *std::move(reader);
  findings_.set_total_bytes(reader_->manifest().bytes());
  CheckNext();
}

void VerifyCall::CheckNext() {
  {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return End(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled"));
  }
  const std::vector<ShardInfo>& shards = reader_->manifest().shards;
  if (next_shard_ == shards.size() || findings_.damaged_size() == kMaxDamagedShards) {
    findings_.set_done(true);
    return StartWriteAndFinish(&findings_, grpc::WriteOptions(), grpc::Status::OK);
  }
  const absl::StatusOr<std::optional<ShardDamage>> damage = reader_->VerifyShard(next_shard_);
  if (!damage.ok()) return End(ToGrpc(damage.status()));
  if (damage->has_value()) {
    v1::DamagedShard& damaged = *findings_.add_damaged();
    damaged.set_file((*damage)->file);
    damaged.set_error((*damage)->error);
  }
  findings_.set_bytes(findings_.bytes() + shards[next_shard_].bytes);
  findings_.set_shards(static_cast<int32_t>(++next_shard_));
  message_ = findings_;
  message_.clear_damaged();
  StartWrite(&message_);
}

void VerifyCall::OnWriteDone(bool /*ok: OnCancel tells*/) { Post(&VerifyCall::CheckNext); }

void VerifyCall::End(grpc::Status status) { Finish(std::move(status)); }

void ReadCall::Begin(Recorder* recorder, WakeQueue* disk, grpc::ByteBuffer message) {
  disk->Post([self = shared_from_this(), this, recorder, disk, message = std::move(message)] {
    absl::Status status = CatchExceptions("ReadRecording", [&] { return Open(recorder->catalog(), disk, message); });
    if (!status.ok()) Refuse(std::move(status));
  });
}

absl::Status ReadCall::Open(Catalog& catalog, WakeQueue* disk, grpc::ByteBuffer message) {
  v1::ReadRecordingRequest request;
  if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, v1::ReadRecordingRequest>(&message, &request).ok()) {
    return absl::InvalidArgumentError("the request is not a ReadRecordingRequest message");
  }
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
