// Calls of the RecordingService that go on for a while.
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
#include "server/service/capture_call.h"
#include "server/service/wake_queue.h"

namespace hookline {

// Streams the progress of a recording. Alive from Begin to OnDone, and as long as a wake for it is queued. `recorder`
// and `wakes` outlive it.
class PersistCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                          public std::enable_shared_from_this<PersistCall> {
 public:
  PersistCall(Recorder* recorder, WakeQueue* wakes) : recorder_(recorder), wakes_(wakes) {}

  void Begin(const std::string& address, const grpc::ByteBuffer& request);

  void OnWriteDone(bool ok) override;
  // The client is gone; the recording goes on.
  void OnCancel() override;
  void OnDone() override;

 private:
  absl::Status Persist(const std::string& address, const grpc::ByteBuffer& request);
  void Advance();
  void TryAdvance();
  v1::PersistResponse Message(const RecordingSession::Progress& progress) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddRecording(v1::PersistResponse& response) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Recorder* const recorder_;
  WakeQueue* const wakes_;
  std::shared_ptr<PersistCall> self_;  // until OnDone
  absl::Mutex mutex_;
  std::string name_ ABSL_GUARDED_BY(mutex_);
  Persisted persisted_ ABSL_GUARDED_BY(mutex_);
  int watch_ ABSL_GUARDED_BY(mutex_) = -1;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer message_ ABSL_GUARDED_BY(mutex_);
  bool began_ ABSL_GUARDED_BY(mutex_) = false;
  bool news_ ABSL_GUARDED_BY(mutex_) = true;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_first_ ABSL_GUARDED_BY(mutex_) = true;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

// Answers a StopRecording once the recording is closed.
class StopCall final : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<StopCall> {
 public:
  // `response` is gRPC's, until OnDone.
  StopCall(Recorder* recorder, WakeQueue* wakes, v1::Recording* response)
      : recorder_(recorder), wakes_(wakes), response_(response) {}

  void Begin(const std::string& name);

  void OnDone() override;

 private:
  void FinishIfEnded();

  Recorder* const recorder_;
  WakeQueue* const wakes_;
  v1::Recording* const response_;
  std::shared_ptr<StopCall> self_;  // until OnDone
  std::string name_;
  absl::Mutex mutex_;
  std::shared_ptr<RecordingSession> session_ ABSL_GUARDED_BY(mutex_);
  int watch_ ABSL_GUARDED_BY(mutex_) = -1;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

// Checks a recording shard by shard, on `disk`'s threads. `running` counts the calls there are.
class VerifyCall final : public grpc::ServerWriteReactor<v1::VerifyRecordingResponse>,
                         public std::enable_shared_from_this<VerifyCall> {
 public:
  VerifyCall(Recorder* recorder, WakeQueue* disk, std::atomic<int>* running)
      : recorder_(recorder), disk_(disk), running_(running) {}

  void Begin(const std::string& name);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override {
    --*running_;
    self_.reset();
  }

 private:
  void Post(void (VerifyCall::*action)());
  void Open();
  void CheckNext();
  void End(grpc::Status status);

  Recorder* const recorder_;
  WakeQueue* const disk_;
  std::atomic<int>* const running_;
  std::shared_ptr<VerifyCall> self_;  // until OnDone
  std::string name_;
  // One action at a time, and gRPC with the message in between.
  std::shared_ptr<const RecordingReader> reader_;
  size_t next_shard_ = 0;
  v1::VerifyRecordingResponse message_;
  v1::VerifyRecordingResponse findings_;
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

// Streams a recording.
class ReadCall final : public CaptureCall<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  using CaptureCall::CaptureCall;

  // Opens and checks on `disk`'s threads.
  void Begin(Recorder* recorder, WakeQueue* disk, grpc::ByteBuffer message);

 private:
  absl::Status Open(Catalog& catalog, WakeQueue* disk, grpc::ByteBuffer message);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_RECORDING_CALLS_H_
