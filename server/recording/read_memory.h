// Limits the memory that all reads of recordings hold together.
#ifndef HOOKLINE_SERVER_RECORDING_READ_MEMORY_H_
#define HOOKLINE_SERVER_RECORDING_READ_MEMORY_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// Thread-safe. Own it by a shared_ptr.
class ReadMemory : public std::enable_shared_from_this<ReadMemory> {
 public:
  explicit ReadMemory(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // Counts `bytes` until the returned object is destroyed. RESOURCE_EXHAUSTED, with the numbers: the limit would
  // be exceeded.
  absl::StatusOr<std::shared_ptr<void>> Reserve(int64_t bytes) {
    absl::MutexLock lock(&mutex_);
    if (bytes > limit_bytes_ - used_bytes_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("max_message_bytes: reads of recordings use ", used_bytes_,
                       " bytes for messages, this one would need ", bytes, ", and all together may use ", limit_bytes_,
                       " (--recordings-read-bytes); ask for smaller messages, or try again once others have ended"));
    }
    used_bytes_ += bytes;
    return std::shared_ptr<void>(nullptr, [self = shared_from_this(), bytes](void*) {
      absl::MutexLock lock(&self->mutex_);
      self->used_bytes_ -= bytes;
    });
  }

 private:
  const int64_t limit_bytes_;
  absl::Mutex mutex_;
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_READ_MEMORY_H_
