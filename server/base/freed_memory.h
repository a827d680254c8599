// How the process's malloc treats what is freed.
#ifndef HOOKLINE_SERVER_BASE_FREED_MEMORY_H_
#define HOOKLINE_SERVER_BASE_FREED_MEMORY_H_

#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// Keeps freed memory mapped. glibc gives large freed blocks back to the kernel, which zeroes them page by page when
// they are needed again; what a forward pass and gRPC allocate comes back at once, so keeping it saves a sixth of the
// one and half of the other. To be called before the process has threads; nothing where malloc is not glibc's.
void KeepFreedMemory();

// Gives back what is kept and not used: memory beyond `kept_bytes` that was free at every look of the last ten seconds,
// as after a burst of requests. One for a process; nothing where malloc is not glibc's.
class FreedMemoryReturner {
 public:
  explicit FreedMemoryReturner(int64_t kept_bytes = int64_t{256} << 20);
  ~FreedMemoryReturner();
  FreedMemoryReturner(const FreedMemoryReturner&) = delete;
  FreedMemoryReturner& operator=(const FreedMemoryReturner&) = delete;

 private:
  void Loop();

  const int64_t kept_bytes_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_FREED_MEMORY_H_
