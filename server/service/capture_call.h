// One call that streams a capture's events: what Capture and CaptureStream have in common.
#ifndef HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_
#define HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_

#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/base/steady.h"
#include "server/capture/capture.h"
#include "server/service/capture_response_encoder.h"
#include "server/service/exceptions.h"
#include "server/service/shared_memory.h"
#include "server/service/status_mapping.h"
#include "server/service/wake_queue.h"

namespace hookline {

// `Reactor` is gRPC's for the method: ServerWriteReactor or ServerBidiReactor of byte buffers.
//
// Events are taken from the capture one at a time, the next when gRPC has taken the last: a client that does not read
// leaves the rest with the engine. gRPC's threads (OnWriteDone, OnCancel, OnReadDone) and the engine's wakes, which
// come through a WakeQueue, all end up in Advance, which alone starts writes and finishes, under the mutex.
//
// A call is alive from Keep to OnDone, and as long as a wake for it is queued.
template <typename Reactor>
class CaptureCall : public Reactor, public std::enable_shared_from_this<CaptureCall<Reactor>> {
 public:
  // `wakes` must outlive the call. `memory`: what the client offers for the values, or null.
  CaptureCall(WakeQueue* wakes, std::shared_ptr<SharedMemory> memory) : wakes_(wakes), memory_(std::move(memory)) {}

  // Has gRPC own the call. To be called once, before anything is started.
  void Keep() { self_ = this->shared_from_this(); }

  void OnWriteDone(bool /*ok: false means a cancelled call, which OnCancel tells*/) final {
    Guard([this] {
      {
        absl::MutexLock lock(&mutex_);
        writing_ = false;
        capture_->AddWireTime(SteadyNow() - write_start_);
        message_.Clear();
      }
      Advance();
    });
  }

  // The client cancelled or is gone, or its deadline passed.
  void OnCancel() final {
    Guard([this] {
      std::shared_ptr<Capture> capture;
      {
        absl::MutexLock lock(&mutex_);
        cancelled_ = true;
        capture = capture_;
      }
      if (capture != nullptr) capture->Cancel();
      Advance();
    });
  }

  void OnDone() final {
    std::shared_ptr<Capture> capture;
    std::shared_ptr<SharedMemory> memory;
    std::optional<Chunk> unsent;
    {
      absl::MutexLock lock(&mutex_);
      capture = std::move(capture_);
      memory = std::move(memory_);
      unsent = std::exchange(unsent_, std::nullopt);
    }
    // After these no wake comes; one that is queued finds the call finished.
    if (capture != nullptr) capture->Cancel();
    if (memory != nullptr) memory->StopUsing();
    unsent.reset();
    capture.reset();
    self_.reset();
  }

 protected:
  // Runs `action`; an exception ends the call with INTERNAL, once what is being written is.
  template <typename Action>
  void Guard(Action action) {
    absl::Status status = CatchExceptions("a capture's call", action);
    if (!status.ok()) Refuse(std::move(status));
  }

  // For Engine::Start.
  CaptureCallbacks callbacks() {
    return {/*on_ready=*/[this] { Wake(&CaptureCall::Advance); },
            /*on_source_room=*/[this] { Wake(&CaptureCall::OnSourceRoom); }};
  }

  // Streams the events of `capture`, from now on.
  void Run(std::shared_ptr<Capture> capture, Encoding encoding) {
    {
      absl::MutexLock lock(&mutex_);
      capture_ = std::move(capture);
      encoding_ = encoding;
    }
    Advance();
  }

  // Ends the call without a summary.
  void Refuse(absl::Status status) {
    {
      absl::MutexLock lock(&mutex_);
      refusal_ = std::move(status);
    }
    Advance();
  }

  // Has the call end with `status` where its capture would end well. The rest of the capture goes on.
  void EndWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    status_at_end_ = std::move(status);
  }

  // Calls `start` unless the call is over or about to be.
  template <typename Start>
  void StartUnlessFinished(Start start) {
    absl::MutexLock lock(&mutex_);
    if (!finished_) start();
  }

  // Null before Run.
  std::shared_ptr<Capture> capture() const {
    absl::MutexLock lock(&mutex_);
    return capture_;
  }

 private:
  virtual void OnSourceRoom() {}

  // On the engine's threads, or on those of whoever it is that lets go of slabs.
  void Wake(void (CaptureCall::*action)()) {
    wakes_->Post([self = this->shared_from_this(), action] { self->Guard([&] { (self.get()->*action)(); }); });
  }

  // Starts the next write or ends the call, if it is time for either.
  void Advance() {
    absl::MutexLock lock(&mutex_);
    if (writing_ || finished_) return;
    if (cancelled_) {
      finished_ = true;
      this->Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled"));
      return;
    }
    if (!refusal_.ok()) {
      finished_ = true;
      this->Finish(ToGrpc(refusal_));
      return;
    }
    if (capture_ == nullptr) return;
    if (unsent_.has_value()) return WriteUnsent();
    std::optional<CaptureEvent> event = capture_->Next();
    if (!event.has_value()) return;
    write_start_ = SteadyNow();
    if (auto* started = std::get_if<CaptureStarted>(&*event)) {
      started_ = std::move(*started);
      Write(EncodeStarted(started_, UseMemory()));
    } else if (auto* chunk = std::get_if<Chunk>(&*event)) {
      unsent_ = std::move(*chunk);
      WriteUnsent();
    } else {
      WriteEnd(std::get<CaptureEnded>(*std::move(event)));
    }
  }

  // How much of the client's memory is used.
  int64_t UseMemory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (memory_ == nullptr) return 0;
    if (encoding_ == Encoding::kBytes &&
        memory_->Use(started_.max_message_bytes, [this] { Wake(&CaptureCall::Advance); })) {
      return memory_->bytes();
    }
    memory_.reset();
    return 0;
  }

  // Unless the client's memory is full: then when it has read some of it.
  void WriteUnsent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int64_t bytes = 0;
    for (const SlabSpan& span : unsent_->data) bytes += span.bytes;
    std::optional<int64_t> data_offset;
    if (memory_ != nullptr && bytes >= kMinSharedBytes) {
      const SharedMemory::Put put = memory_->TryPut(unsent_->data);
      if (put.outcome == SharedMemory::Put::Outcome::kFull) return;
      if (put.outcome == SharedMemory::Put::Outcome::kPut) data_offset = put.offset;
    }
    Write(EncodeChunk(started_, encoding_, *std::exchange(unsent_, std::nullopt), data_offset));
  }

  void Write(grpc::ByteBuffer message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    message_.Swap(&message);
    this->StartWrite(&message_);
    writing_ = true;  // which OnWriteDone ends, after the mutex is free
  }

  void WriteEnd(CaptureEnded ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ended.status.ok() && !status_at_end_.ok()) {
      ended.status = status_at_end_;
      ended.stop_reason = StopReason::kError;
    }
    message_ = EncodeSummary(started_, ended);
    finished_ = true;
    this->StartWriteAndFinish(&message_, grpc::WriteOptions(), ToGrpc(ended.status));
  }

  // Fewer are sent as fast as they are copied.
  static constexpr int64_t kMinSharedBytes = int64_t{64} << 10;

  WakeQueue* const wakes_;
  // Until OnDone, after which gRPC does not touch the call.
  std::shared_ptr<CaptureCall> self_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<Capture> capture_ ABSL_GUARDED_BY(mutex_);
  Encoding encoding_ ABSL_GUARDED_BY(mutex_) = Encoding::kBytes;
  CaptureStarted started_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<SharedMemory> memory_ ABSL_GUARDED_BY(mutex_);
  std::optional<Chunk> unsent_ ABSL_GUARDED_BY(mutex_);
  // With gRPC while `writing_`, and after the last write until OnDone.
  grpc::ByteBuffer message_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time write_start_ ABSL_GUARDED_BY(mutex_);  // when what is being written was taken from the capture
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  // Finish or StartWriteAndFinish was called: nothing may be started any more.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_at_end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_
