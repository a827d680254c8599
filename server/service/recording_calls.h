// The calls of the RecordingService that go on for a while.
#ifndef HOOKLINE_SERVER_SERVICE_RECORDING_CALLS_H_
#define HOOKLINE_SERVER_SERVICE_RECORDING_CALLS_H_

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "hookline/v1/recording_service.pb.h"
#include "server/recorder/recorder.h"
#include "server/service/auth/authenticator.h"
#include "server/service/capture_call.h"
#include "server/service/stream_call.h"
#include "server/service/task_threads.h"
#include "server/service/text_requests.h"
#include "server/service/wire/request_parser.h"

namespace hookline {

// Streams the progress of a recording, which goes on when its client leaves. `recorder` and `threads` outlive the call.
class PersistCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  PersistCall(Recorder* recorder, TaskThreads* threads, TextRequests* texts)
      : StreamCall("Persist", threads), recorder_(recorder), texts_(texts) {}

  void Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request);

 private:
  absl::Status Persist(const ClientIdentity& client, const grpc::ByteBuffer& request);
  absl::Status PersistPrepared(const ClientIdentity& client, PersistRequest request);
  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release() override;
  RecordingSession::Progress Progress() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::PersistResponse Message(const RecordingSession::Progress& progress) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Recorder* const recorder_;
  TextRequests* const texts_;
  std::string name_ ABSL_GUARDED_BY(mutex_);
  std::optional<Persisted> persisted_ ABSL_GUARDED_BY(mutex_);  // none before Begin
  int watch_ ABSL_GUARDED_BY(mutex_) = -1;
  bool has_news_ ABSL_GUARDED_BY(mutex_) = true;
  bool is_first_ ABSL_GUARDED_BY(mutex_) = true;
};

// Answers a StopRecording once the recording is closed.
class StopCall final : public StreamCall<grpc::ServerUnaryReactor, NoMessage> {
 public:
  // `response` is gRPC's, and valid until OnDone.
  StopCall(Recorder* recorder, TaskThreads* threads, grpc::ByteBuffer* response)
      : StreamCall("StopRecording", threads), recorder_(recorder), response_(response) {}

  void Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request);

 private:
  absl::Status Stop(const grpc::ByteBuffer& request, const ClientIdentity& client);
  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release() override;
  absl::Status FillResponse() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Recorder* const recorder_;
  grpc::ByteBuffer* const response_;
  std::string name_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RecordingSession> session_ ABSL_GUARDED_BY(mutex_);
  int watch_ ABSL_GUARDED_BY(mutex_) = -1;
};

// Checks a recording shard by shard. Verifications share `disk`'s threads slice by slice, so that none waits for
// another's shard. `running` counts the verifications and merges that run or wait.
class VerifyCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  VerifyCall(Recorder* recorder, TaskThreads* disk, std::atomic<int>* running)
      : StreamCall("VerifyRecording", disk), recorder_(recorder), running_(running), others_((*running)++) {}
  ~VerifyCall() override { --*running_; }

  void Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request);

 private:
  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Written() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Open(const std::string& name);
  // Reads one slice of the current shard, and posts itself for the next until the shard is done.
  void CheckSlice();
  absl::Status AddShard(const absl::StatusOr<bool>& checked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Recorder* const recorder_;
  std::atomic<int>* const running_;
  const int others_;  // the verifications and merges that ran or waited at the start
  // Only one task uses these at a time.
  std::shared_ptr<const RecordingReader> reader_;
  std::unique_ptr<ShardCheck> check_;  // of the current shard
  size_t next_shard_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::VerifyRecordingResponse findings_ ABSL_GUARDED_BY(mutex_);
  bool has_news_ ABSL_GUARDED_BY(mutex_) = false;
};

// Streams a recording.
class ReadCall final : public CaptureCall<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  ReadCall(TaskThreads* threads, std::shared_ptr<SharedMemory> memory)
      : CaptureCall("ReadRecording", threads, std::move(memory)) {}

  // Opens and checks the recording on `disk`'s threads.
  void Begin(const absl::StatusOr<AuthClient>& client, Recorder* recorder, TaskThreads* disk,
             const grpc::ByteBuffer& message);

 private:
  absl::Status Open(Catalog& catalog, TaskThreads* disk, const grpc::ByteBuffer& message);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_RECORDING_CALLS_H_
