// The life of a call that goes on for a while: who owns it, what it does next, and how it ends.
//
//   class CountCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
//    public:
//     explicit CountCall(TaskThreads* threads) : StreamCall("Count", threads) {}
//    private:
//     Step NextStep() override { return left_-- > 0 ? Step::Write(Encode(left_)) : Step::Finish(absl::OkStatus()); }
//   };
//
//   auto call = std::make_shared<CountCall>(&threads);
//   call->Keep(context, std::move(record));
//   call->Advance();
//   return call.get();
#ifndef HOOKLINE_SERVER_SERVICE_STREAM_CALL_H_
#define HOOKLINE_SERVER_SERVICE_STREAM_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "server/service/call_record.h"
#include "server/service/exceptions.h"
#include "server/service/status_mapping.h"
#include "server/service/task_threads.h"

namespace hookline {

// The message type of a unary call, which writes none.
using NoMessage = std::monostate;

// `Reactor` is gRPC's for the method: ServerWriteReactor, ServerBidiReactor or ServerUnaryReactor. `Message` is what it
// writes.
//
// Every event of the call (a write is done, the client is gone, a wake) leads to Advance, which alone starts writes and
// finishes the call, under the mutex. An exception anywhere ends the call with INTERNAL.
//
// A call is alive from Keep to OnDone, and as long as a task for it is queued.
template <typename Reactor, typename Message>
class StreamCall : public Reactor, public std::enable_shared_from_this<StreamCall<Reactor, Message>> {
 public:
  // `threads` must outlive the call. `method` names it in the log.
  StreamCall(absl::string_view method, TaskThreads* threads) : method_(method), threads_(threads) {}

  // Transfers ownership to gRPC until OnDone. Call it once, before anything is started. `context` and `record` are
  // those of the call; `record` ends with it.
  void Keep(grpc::CallbackServerContext* context, CallRecord record) {
    self_ = this->shared_from_this();
    absl::MutexLock lock(&mutex_);
    context_ = context;
    record_ = std::move(record);
  }

  // Starts the next write or ends the call, if it is time for either.
  void Advance() {
    Guard([this] {
      absl::MutexLock lock(&mutex_);
      if (writing_ || finished_) return;
      if (cancelled_) return FinishNow(absl::CancelledError("the call was cancelled"));
      if (!refusal_.ok()) return FinishNow(refusal_);
      Take(NextStep());
    });
  }

  // Called for reactors that write; gRPC's unary one has no such function. If `ok` is false the call was cancelled,
  // which OnCancel reports.
  void OnWriteDone(bool /*ok*/) {  // NOLINT(modernize-use-override)
    Guard([this] {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      message_ = Message();
      Written();
    });
    Advance();
  }

  // Called when the client cancels or is gone, or when its deadline passes.
  void OnCancel() final {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    }
    Guard([this] { Abandoned(); });
    Advance();
  }

  void OnDone() final {
    CallRecord record;
    absl::Status status;
    {
      // A task that is queued finds the call finished.
      absl::MutexLock lock(&mutex_);
      finished_ = true;
      context_ = nullptr;
      record = std::move(record_);
      status = status_;
      // gRPC may report the end of the messages before it reports that the client is gone; then nobody got the answer.
      if (cancelled_ && status.ok()) status = absl::CancelledError("the call was cancelled");
    }
    record.End(status);
    Guard([this] { Release(); });
    self_.reset();
  }

 protected:
  // The next thing that the call does.
  struct Step {
    // Does nothing until Advance is called again.
    static Step Wait() { return {}; }
    static Step Write(Message message) { return {std::move(message), std::nullopt}; }
    static Step WriteAndFinish(Message message, absl::Status status) { return {std::move(message), std::move(status)}; }
    static Step Finish(absl::Status status) { return {std::nullopt, std::move(status)}; }

    std::optional<Message> message;
    std::optional<absl::Status> status;
  };

  // Called whenever something has happened and nothing is being written, until the call is finished.
  virtual Step NextStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // Called when gRPC has the message. Releases what the message needed until then.
  virtual void WriteBegun() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {}
  // Called once the written message has left, or was dropped because the client is gone.
  virtual void Written() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {}
  // Called without the mutex when the client is gone.
  virtual void Abandoned() {}
  // Called without the mutex when gRPC is done with the call. Releases everything that calls back.
  virtual void Release() {}

  // Runs `action` and then Advance on the call's threads, soon.
  template <typename Action>
  void Post(Action action) {
    PostOn(threads_, std::move(action));
  }
  // Does the same on other threads, for actions that take long.
  template <typename Action>
  void PostOn(TaskThreads* threads, Action action) {
    threads->Post([self = this->shared_from_this(), action = std::move(action)] {
      self->Guard(action);
      self->Advance();
    });
  }
  // Advances the call from a thread that must not write: one of the engine's, or one that returns slabs.
  void Wake() {
    Post([] {});
  }

  // Ends the call with `status`, once the write in progress is done.
  void Refuse(absl::Status status) {
    {
      absl::MutexLock lock(&mutex_);
      refusal_ = std::move(status);
    }
    Advance();
  }

  // Runs `action`; an exception refuses the call.
  template <typename Action>
  void Guard(const Action& action) {
    absl::Status status = CatchExceptions(method_, action);
    if (!status.ok()) Refuse(std::move(status));
  }

  bool finished() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return finished_; }

  CallRecord& record() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return record_; }

  // The call's context until OnDone, then null.
  grpc::CallbackServerContext* context() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return context_; }

  mutable absl::Mutex mutex_;

 private:
  void FinishNow(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    finished_ = true;
    status_ = status;
    this->Finish(ToGrpc(status));
  }

  void Take(Step step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if constexpr (!std::is_same_v<Message, NoMessage>) {
      if (step.message.has_value()) {
        message_ = *std::move(step.message);
        record_.AddBytes(static_cast<int64_t>(message_.Length()));
        if (step.status.has_value()) {
          finished_ = true;
          status_ = *std::move(step.status);
          return this->StartWriteAndFinish(&message_, grpc::WriteOptions(), ToGrpc(status_));
        }
        this->StartWrite(&message_);
        writing_ = true;  // until OnWriteDone, which runs after the mutex is free
        return WriteBegun();
      }
    }
    if (step.status.has_value()) FinishNow(*step.status);
  }

  const std::string method_;
  TaskThreads* const threads_;
  // Keeps the call alive until OnDone, after which gRPC does not touch it.
  std::shared_ptr<StreamCall> self_;
  // gRPC uses this while `writing_`, and after the last write until OnDone.
  Message message_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  // Finish or StartWriteAndFinish was called: nothing may be started any more.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // with which it was finished
  CallRecord record_ ABSL_GUARDED_BY(mutex_);
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_STREAM_CALL_H_
