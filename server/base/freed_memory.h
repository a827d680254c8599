// Controls what malloc does with freed memory.
#ifndef HOOKLINE_SERVER_BASE_FREED_MEMORY_H_
#define HOOKLINE_SERVER_BASE_FREED_MEMORY_H_

#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// Keeps freed memory mapped. glibc gives large freed blocks back to the kernel, which zeroes them page by page when
// they are needed again; what a forward pass and gRPC allocate comes back at once, so keeping it saves a sixth of the
// one and half of the other. Call it before the process has threads. It does nothing where malloc is not glibc's.
void KeepFreedMemory();

// Gives memory that is kept and not used back to the system: what exceeds `kept_bytes` and was free at every look of
// the last ten seconds, as after a burst of requests. A process that did nothing for ten seconds keeps none. A process
// has one returner. It does nothing where malloc is not glibc's.
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
