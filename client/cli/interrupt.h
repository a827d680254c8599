// Turns SIGINT and SIGTERM into events that ordinary code can wait for or listen to.
#ifndef HOOKLINE_CLIENT_CLI_INTERRUPT_H_
#define HOOKLINE_CLIENT_CLI_INTERRUPT_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/steady.h"

namespace hookline::cli {

// The program makes one, before any other thread. Thread-safe.
//
// The first signal calls the listener, which ends the program cleanly. Without a listener, or at the second signal, the
// program ends at once with kExitInterrupted.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // Calls `listener` at the first signal, from a thread of its own, or in the constructor if the signal has come
  // before. `listener` must not block. The destructor waits for a running call and restores the previous listener.
  class Listener {
   public:
    Listener(Interrupt* interrupt, std::function<void()> listener);
    ~Listener();
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

   private:
    Interrupt* const interrupt_;
    std::function<void()> before_;
  };

  bool came() const;

  // Waits until a signal has come, for at most `duration`. Returns whether a signal has come.
  bool WaitFor(absl::Duration duration) const;

 private:
  void Run();

  mutable absl::Mutex mutex_;
  mutable SteadyCondVar changed_;
  bool came_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> listener_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_INTERRUPT_H_
