// Answers a server's keepalive pings while nobody reads from a call.
#ifndef HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_
#define HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/channel.h"
#include "server/base/steady.h"

namespace hookline::client {

// gRPC reads from a connection only while a thread waits for something from it. If a caller read nothing for longer
// than the server's keepalive, the server would take it for dead. A PauseWatch therefore waits in the caller's place
// until the caller reads again. Thread-safe.
class PauseWatch {
 public:
  explicit PauseWatch(std::shared_ptr<grpc::Channel> channel);
  ~PauseWatch();
  PauseWatch(const PauseWatch&) = delete;
  PauseWatch& operator=(const PauseWatch&) = delete;

  // Call these around each read of the call.
  void BeginRead() { reads_.fetch_add(1, std::memory_order_relaxed); }
  void EndRead() { reads_.fetch_add(1, std::memory_order_relaxed); }

  // Says that the call is over. Idempotent, and does not wait.
  void End();

 private:
  void Run();

  const std::shared_ptr<grpc::Channel> channel_;
  std::atomic<int64_t> reads_{0};  // begun plus ended reads; odd during a read
  absl::Mutex mutex_;
  SteadyCondVar changed_;  // notified when `over_` is set
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_PAUSE_WATCH_H_
