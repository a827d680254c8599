// Answers a server's keepalive pings while nobody reads from a connection.
#ifndef HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_
#define HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/channel.h"
#include "server/base/steady.h"

namespace hookline::client {

// gRPC reads from a connection only while a thread waits for something from it. If a caller read nothing for longer
// than the server's keepalive, the server would take it for dead. A PauseWatch therefore waits in the place of callers
// until they read again. One thread watches all calls of a channel, since a thread for each would cost a small capture
// more than its rows. Thread-safe.
class PauseWatch {
 public:
  explicit PauseWatch(std::shared_ptr<grpc::Channel> channel);
  ~PauseWatch();
  PauseWatch(const PauseWatch&) = delete;
  PauseWatch& operator=(const PauseWatch&) = delete;

  // The reads of one call, which is watched until End.
  class Reads {
   public:
    explicit Reads(std::shared_ptr<PauseWatch> watch);
    ~Reads() { End(); }
    Reads(const Reads&) = delete;
    Reads& operator=(const Reads&) = delete;

    // Call these around each read of the call.
    void BeginRead() { count_.fetch_add(1, std::memory_order_relaxed); }
    void EndRead() { count_.fetch_add(1, std::memory_order_relaxed); }

    // Says that the call is over. Idempotent, and does not wait.
    void End();

    // Returns how many reads have begun, plus how many have ended: it is odd during a read.
    int64_t count() const { return count_.load(std::memory_order_relaxed); }

   private:
    const std::shared_ptr<PauseWatch> watch_;
    std::atomic<int64_t> count_{0};
  };

 private:
  struct Watched {
    const Reads* call;
    int64_t seen = -1;  // the count at the last look
  };

  void Run();
  bool AnyIsPaused() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<grpc::Channel> channel_;
  absl::Mutex mutex_;
  SteadyCondVar changed_;  // notified when `over_` is set, and of a call if the thread waits for one
  std::vector<Watched> calls_ ABSL_GUARDED_BY(mutex_);
  bool waits_for_call_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_
