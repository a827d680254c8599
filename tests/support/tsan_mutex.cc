// Tells ThreadSanitizer what absl::Mutex and absl::CondVar do. The distribution's Abseil is built without the
// sanitizer, which therefore sees neither its locks nor the order that they make. This program defines the functions
// that Hookline uses, ahead of the library's. Each calls the library's function and reports it as an instrumented
// Abseil would (absl/base/internal/tsan_mutex_interface.h). Between a `pre` and its `post` the sanitizer ignores
// what the thread reads, which is right for conditions: Abseil calls them with the mutex held, on behalf of the
// waiting thread.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>
#include <cstring>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace {

// Returns the library's function with the name of `own`. A pointer to a member function that is not virtual begins with
// the function's address (Itanium C++ ABI, 2.3).
template <typename Method>
Method Library(Method own) {
  void* address = nullptr;
  std::memcpy(&address, &own, sizeof(address));
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) std::abort();
  address = dlsym(RTLD_NEXT, info.dli_sname);
  if (address == nullptr) std::abort();
  std::memcpy(&own, &address, sizeof(address));
  return own;
}

// A waiting thread unlocks the mutex and locks it again.
class Waiting {
 public:
  explicit Waiting(absl::Mutex* mutex) : mutex_(mutex) {
    __tsan_mutex_pre_unlock(mutex_, 0);
    __tsan_mutex_post_unlock(mutex_, 0);
    __tsan_mutex_pre_lock(mutex_, 0);
  }
  ~Waiting() { __tsan_mutex_post_lock(mutex_, 0, 0); }

 private:
  absl::Mutex* const mutex_;
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto library = Library(&Mutex::Lock);
  __tsan_mutex_pre_lock(this, 0);
  (this->*library)();
  __tsan_mutex_post_lock(this, 0, 0);
}

// Notification::WaitForNotification calls this.
void Mutex::LockWhen(const Condition& condition) {
  static const auto library = Library(&Mutex::LockWhen);
  __tsan_mutex_pre_lock(this, 0);
  (this->*library)(condition);
  __tsan_mutex_post_lock(this, 0, 0);
}

bool Mutex::TryLock() {
  static const auto library = Library(&Mutex::TryLock);
  __tsan_mutex_pre_lock(this, __tsan_mutex_try_lock);
  const bool locked = (this->*library)();
  __tsan_mutex_post_lock(this, locked ? __tsan_mutex_try_lock : __tsan_mutex_try_lock | __tsan_mutex_try_lock_failed,
                         0);
  return locked;
}

void Mutex::Unlock() {
  static const auto library = Library(&Mutex::Unlock);
  __tsan_mutex_pre_unlock(this, 0);
  (this->*library)();
  __tsan_mutex_post_unlock(this, 0);
}

void Mutex::Await(const Condition& condition) {
  static const auto library = Library(&Mutex::Await);
  const Waiting waiting(this);
  (this->*library)(condition);
}

// AwaitWithTimeout calls this.
bool Mutex::AwaitWithDeadline(const Condition& condition, absl::Time deadline) {
  static const auto library = Library(&Mutex::AwaitWithDeadline);
  const Waiting waiting(this);
  return (this->*library)(condition, deadline);
}

void CondVar::Wait(Mutex* mutex) {
  static const auto library = Library(&CondVar::Wait);
  const Waiting waiting(mutex);
  (this->*library)(mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
  static const auto library = Library(&CondVar::WaitWithDeadline);
  const Waiting waiting(mutex);
  return (this->*library)(mutex, deadline);
}

ABSL_NAMESPACE_END
}  // namespace absl
