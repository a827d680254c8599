// One client's memory that values are written to instead of being sent. SHARED_MEMORY.md specifies what client and
// server send each other.
//
//   std::shared_ptr<SharedMemory> memory = listener.Take(key);
//   if (memory != nullptr && memory->Use(max_message_bytes, [] { Wake(); })) {
//     SharedMemory::Put put = memory->TryPut(chunk.data);   // again after a wake if it was full
//   }
//   memory->StopUsing();
#ifndef HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_SHARED_MEMORY_H_
#define HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_SHARED_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/base/slab_pool.h"

namespace hookline {

// Thread-safe.
class SharedMemory {
 public:
  static constexpr int64_t kMinBytes = int64_t{64} << 10;
  static constexpr int64_t kMaxBytes = int64_t{64} << 20;  // four messages of the largest size

  // Maps the memory behind `descriptor`, which stays the caller's. `mapped_bytes` counts what all objects with the
  // same counter map. FAILED_PRECONDITION: writing to the memory could do harm; RESOURCE_EXHAUSTED: the count would
  // exceed `max_mapped_bytes`.
  static absl::StatusOr<std::shared_ptr<SharedMemory>> Map(int descriptor,
                                                           std::shared_ptr<std::atomic<int64_t>> mapped_bytes,
                                                           int64_t max_mapped_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int64_t bytes() const { return bytes_; }

  // Divides the memory into pieces for messages of `message_bytes` (SharedPieceBytes). Returns false if not even one
  // fits. After a TryPut that found the memory full, `on_room` runs once when that has changed; it must not block or
  // call back.
  bool Use(int64_t message_bytes, std::function<void()> on_room);
  // When this returns, `on_room` is not running and will not run.
  void StopUsing();

  struct Put {
    enum class Outcome { kPut, kFull, kGone };
    Outcome outcome;
    int64_t offset = 0;  // kPut: where the values begin
  };
  // Copies the spans, at most one message of Use, to a free piece. kGone: the client has closed its connection.
  Put TryPut(absl::Span<const SlabSpan> data);

  // Called by the connection when the client has read the piece at `offset`. Returns false if it had none there.
  bool Release(int64_t offset);
  // Called by the connection when it is closed.
  void Close();

 private:
  SharedMemory(uint8_t* data, int64_t bytes, std::shared_ptr<std::atomic<int64_t>> mapped_bytes)
      : data_(data), bytes_(bytes), mapped_bytes_(std::move(mapped_bytes)) {}

  void WakeIfWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  uint8_t* const data_;
  const int64_t bytes_;
  const std::shared_ptr<std::atomic<int64_t>> mapped_bytes_;
  absl::Mutex mutex_;
  std::function<void()> on_room_ ABSL_GUARDED_BY(mutex_);
  int64_t piece_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Pieces, by number. The last one is taken first: it is still in the cache.
  std::vector<int64_t> free_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> with_client_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> written_bytes_ ABSL_GUARDED_BY(mutex_);  // the most that a message put into the piece
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_SHARED_MEMORY_H_
