// The servers of all origins: one for each slot of ConnectionOrigins that has had a connection.
#ifndef HOOKLINE_SERVER_SERVICE_ORIGIN_SERVERS_H_
#define HOOKLINE_SERVER_SERVICE_ORIGIN_SERVERS_H_

#include <atomic>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/service/origin_server.h"
#include "server/service/task_threads.h"

namespace hookline {

// Thread-safe. Its destructor cancels the calls that still run, and waits for them.
class OriginServers {
 public:
  // `parts` must outlive this. `slots`: ConnectionOrigins::size().
  OriginServers(SharedParts* parts, int slots) : parts_(parts), servers_(static_cast<size_t>(slots)) {}

  // Starts the slot's server, unless it has one of that origin. If the slot has a server of another origin, whose
  // connections are closed, that server ends on another thread: calls that came on those connections may still be
  // queued there, and must not be taken for the new user's. Errors of OriginServer::Start; RESOURCE_EXHAUSTED: too many
  // servers are ending.
  absl::Status Prepare(int slot, Origin origin) ABSL_LOCKS_EXCLUDED(mutex_);

  // Serves a connection in a slot that is prepared for its origin; takes over its descriptor.
  void HandOn(int slot, int listener, int connection) ABSL_LOCKS_EXCLUDED(mutex_);

  // Sets whether health says SERVING, also in servers that start later.
  void SetServing(bool serving) ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes no more calls, and cancels those that still run after `grace`. Returns when no call is left. Prepare and
  // HandOn must not be called afterwards.
  void Shutdown(absl::Duration grace) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Each server that ends waits for what its last calls still do, which takes seconds at most.
  static constexpr int kMaxEnding = 16;

  SharedParts* const parts_;
  absl::Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  // The servers by slot; null for a slot that has had no connection.
  std::vector<std::shared_ptr<OriginServer>> servers_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> ending_{0};
  TaskThreads ends_{1};
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_ORIGIN_SERVERS_H_
