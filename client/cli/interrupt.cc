#include "client/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

#include "client/cli/exit_code.h"

namespace hookline::cli {
namespace {

// The signal that ends the thread that waits for signals.
constexpr int kEndSignal = SIGUSR2;

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, kEndSignal}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

Interrupt::Interrupt() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads made later inherit it
  thread_ = std::thread(&Interrupt::Run, this);
}

Interrupt::~Interrupt() {
  pthread_kill(thread_.native_handle(), kEndSignal);
  thread_.join();
}

void Interrupt::Run() {
  const sigset_t signals = Signals();
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    if (signal == kEndSignal) return;
    absl::MutexLock lock(&mutex_);
    if (came_ || listener_ == nullptr) _exit(kExitInterrupted);
    came_ = true;
    changed_.NotifyAll();
    listener_();
  }
}

Interrupt::Listener::Listener(Interrupt* interrupt, std::function<void()> listener) : interrupt_(interrupt) {
  absl::MutexLock lock(&interrupt_->mutex_);
  before_ = std::exchange(interrupt_->listener_, std::move(listener));
  if (interrupt_->came_) interrupt_->listener_();
}

Interrupt::Listener::~Listener() {
  absl::MutexLock lock(&interrupt_->mutex_);
  interrupt_->listener_ = std::move(before_);
}

bool Interrupt::came() const {
  absl::MutexLock lock(&mutex_);
  return came_;
}

bool Interrupt::WaitFor(absl::Duration duration) const {
  absl::MutexLock lock(&mutex_);
  return changed_.WaitFor(mutex_, duration, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return came_; });
}

}  // namespace hookline::cli
