// One call that streams a capture's events: what Capture and CaptureStream have in common.
#ifndef HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_
#define HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_

#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/base/steady.h"
#include "server/capture/capture.h"
#include "server/service/shared_memory/shared_memory.h"
#include "server/service/stream_call.h"
#include "server/service/wire/capture_response_encoder.h"

namespace hookline {

// `Reactor` is gRPC's for the method: ServerWriteReactor or ServerBidiReactor of byte buffers. Events are taken from
// the capture one at a time, the next when gRPC has taken the last, so that the rest stays with the engine while the
// client does not read.
template <typename Reactor>
class CaptureCall : public StreamCall<Reactor, grpc::ByteBuffer> {
 protected:
  using Base = StreamCall<Reactor, grpc::ByteBuffer>;
  using Base::mutex_;
  using typename Base::Step;

  // `memory` is the client's memory for the values, or null.
  CaptureCall(absl::string_view method, TaskThreads* threads, std::shared_ptr<SharedMemory> memory)
      : Base(method, threads), memory_(std::move(memory)) {}

  // The callbacks for Engine::Start.
  CaptureCallbacks callbacks() {
    return {/*on_ready=*/[this] { this->Wake(); },
            /*on_source_room=*/[this] { this->Post([this] { OnSourceRoom(); }); },
            /*on_expired=*/[this] { this->Post([this] { Expire(); }); }};
  }

  // Streams the events of `capture`, from now on.
  void Run(std::shared_ptr<Capture> capture, Encoding encoding) {
    {
      absl::MutexLock lock(&mutex_);
      const std::optional<int> ahead = capture->CapturesAhead();
      if (ahead.has_value() && !this->finished() && this->context() != nullptr) {
        // The metadata tells a waiting client how many captures are ahead of its own.
        this->context()->AddInitialMetadata(kCapturesAheadMetadata, absl::StrCat(*ahead));
        this->StartSendInitialMetadata();
      }
      capture_ = std::move(capture);
      encoding_ = encoding;
    }
    this->Advance();
  }

  // Finishes the call with `status` if the capture succeeds. The capture itself goes on to its end.
  void EndWith(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    status_at_end_ = std::move(status);
  }

  // Calls `start` unless the call is over or about to be.
  template <typename Start>
  void StartUnlessFinished(Start start) {
    absl::MutexLock lock(&mutex_);
    if (!this->finished()) start();
  }

  // Null before Run.
  std::shared_ptr<Capture> capture() const {
    absl::MutexLock lock(&mutex_);
    return capture_;
  }

 private:
  virtual void OnSourceRoom() {}

  // Cancels the call, since its client takes nothing; gRPC then frees what it still holds for the client.
  void Expire() {
    absl::MutexLock lock(&mutex_);
    if (this->context() != nullptr) this->context()->TryCancel();
  }

  void WriteBegun() final ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { chunk_.reset(); }

  void Written() final ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Duration duration = SteadyNow() - write_start_;
    capture_->AddWireTime(duration);
    if (is_chunk_) this->record().AddWireTime(duration);
  }

  void Abandoned() final {
    if (const std::shared_ptr<Capture> running = capture(); running != nullptr) running->Cancel();
  }

  void Release() final {
    std::shared_ptr<Capture> capture;
    std::shared_ptr<SharedMemory> memory;
    std::optional<Chunk> chunk;
    {
      absl::MutexLock lock(&mutex_);
      capture = std::move(capture_);
      memory = std::move(memory_);
      chunk = std::exchange(chunk_, std::nullopt);
    }
    if (capture != nullptr) capture->Cancel();
    if (memory != nullptr) memory->StopUsing();
  }

  Step NextStep() final ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (capture_ == nullptr) return Step::Wait();
    if (chunk_.has_value()) return WriteChunk();
    std::optional<CaptureEvent> event = capture_->Next();
    if (!event.has_value()) return Step::Wait();
    write_start_ = SteadyNow();
    is_chunk_ = std::holds_alternative<Chunk>(*event);
    if (auto* started = std::get_if<CaptureStarted>(&*event)) {
      started_ = std::move(*started);
      return Step::Write(EncodeStarted(started_, UseMemory()));
    }
    if (auto* chunk = std::get_if<Chunk>(&*event)) {
      chunk_ = std::move(*chunk);
      return WriteChunk();
    }
    return WriteEnd(std::get<CaptureEnded>(*std::move(event)));
  }

  // Begins to use the client's memory, if the values can go there. Returns its size in bytes; 0: it is not used.
  int64_t UseMemory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (memory_ == nullptr) return 0;
    if (encoding_ == Encoding::kBytes && memory_->Use(started_.max_message_bytes, [this] { this->Wake(); })) {
      return memory_->bytes();
    }
    memory_.reset();
    return 0;
  }

  // Writes the chunk. If the client's memory is full, waits until the client has read some of it.
  Step WriteChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int64_t bytes = 0;
    for (const SlabSpan& span : chunk_->data) bytes += span.bytes;
    std::optional<int64_t> data_offset;
    if (memory_ != nullptr && bytes >= kMinSharedBytes) {
      const SharedMemory::Put put = memory_->TryPut(chunk_->data);
      if (put.outcome == SharedMemory::Put::Outcome::kFull) return Step::Wait();
      if (put.outcome == SharedMemory::Put::Outcome::kPut) {
        data_offset = put.offset;
        this->record().AddBytes(bytes);
      }
    }
    this->record().AddRows(chunk_->rows);
    return Step::Write(EncodeChunk(started_, encoding_, *chunk_, data_offset));
  }

  Step WriteEnd(CaptureEnded ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ended.status.ok() && !status_at_end_.ok()) {
      ended.status = status_at_end_;
      ended.stop_reason = StopReason::kError;
    }
    this->record().SetEnd(ended);
    return Step::WriteAndFinish(EncodeSummary(started_, ended), ended.status);
  }

  // The metadata that tells a waiting call how many captures will be admitted before its own.
  static constexpr char kCapturesAheadMetadata[] = "hookline-captures-ahead";
  // Smaller chunks are sent as fast as they are copied.
  static constexpr int64_t kMinSharedBytes = int64_t{64} << 10;

  std::shared_ptr<Capture> capture_ ABSL_GUARDED_BY(mutex_);
  Encoding encoding_ ABSL_GUARDED_BY(mutex_) = Encoding::kBytes;
  CaptureStarted started_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<SharedMemory> memory_ ABSL_GUARDED_BY(mutex_);
  // The chunk that is written next. Where its values are copied, its slabs come back once the message is on its way: if
  // they came back sooner, they would wake the engine before the client, whose rows would then be late.
  std::optional<Chunk> chunk_ ABSL_GUARDED_BY(mutex_);
  absl::Time write_start_ ABSL_GUARDED_BY(mutex_);  // when the event that is being written was taken
  bool is_chunk_ ABSL_GUARDED_BY(mutex_) = false;   // whether that event is a chunk
  absl::Status status_at_end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CAPTURE_CALL_H_
