// SIGINT and SIGTERM as events that ordinary code can wait for and be called by.
#ifndef HOOKLINE_CLIENT_CLI_INTERRUPT_H_
#define HOOKLINE_CLIENT_CLI_INTERRUPT_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/steady.h"

namespace hookline::cli {

// One for the program, made before any other thread. Thread-safe.
//
// While somebody listens, a first signal calls them, and they end the program cleanly. Without a listener, and at
// the second signal, the program ends at once with kExitInterrupted.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // Calls `listener`, from a thread of its own, at the first signal, or now if that has come. It must not block.
  // Destroying the listener waits for a call of it, and the one before listens again.
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

  // Waits for that long; true if a signal came before the end.
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
