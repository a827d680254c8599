// Slabs: fixed pieces of host memory that hold rows on their way out. All are allocated and touched once, at start, and
// reused; nothing is allocated per row afterwards.
//
// A user reserves a whole window of slabs, or none. A slab that the window hands out comes back to the window when its
// last reference is gone, on whichever thread that happens.
//
//   SlabPool pool(std::move(memory), slab_bytes, slab_count);
//   std::shared_ptr<SlabWindow> window = pool.TryReserve(8, [] { Wake(); });
//   SlabRef slab = window->Take();          // at most 8 at a time
#ifndef HOOKLINE_SERVER_BASE_SLAB_POOL_H_
#define HOOKLINE_SERVER_BASE_SLAB_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

// A shared reference to one piece of memory. As thread-safe as a shared_ptr.
class SlabRef {
 public:
  SlabRef() = default;
  // `return_slab` runs once, when the last copy of this reference is gone.
  SlabRef(uint8_t* data, int64_t bytes, std::function<void()> return_slab);

  uint8_t* data() const { return holder_ ? holder_->data : nullptr; }
  int64_t bytes() const { return holder_ ? holder_->bytes : 0; }
  explicit operator bool() const { return holder_ != nullptr; }
  void reset() { holder_.reset(); }

 private:
  struct Holder {
    uint8_t* data;
    int64_t bytes;
    std::function<void()> return_slab;
    ~Holder();
  };
  std::shared_ptr<Holder> holder_;
};

// A run of bytes inside a slab, which the span keeps alive.
struct SlabSpan {
  SlabRef slab;
  int64_t offset = 0;
  int64_t bytes = 0;

  uint8_t* data() const { return slab.data() + offset; }
};

class SlabPool;

// Slabs reserved for one user. Thread-safe. Closing or destroying it ends the reservation: empty slabs are free for
// others at once, the rest when they come back. The pool must outlive every window and every slab.
class SlabWindow {
 public:
  ~SlabWindow() { Close(); }
  SlabWindow(const SlabWindow&) = delete;
  SlabWindow& operator=(const SlabWindow&) = delete;

  // Returns a slab, or an empty reference when all slabs of the window are out or the window is closed.
  SlabRef Take();
  int64_t free_slabs() const;
  // Returns the number of slabs, reserved or handed out, that others cannot have because of this window.
  int64_t held_slabs() const;
  // Gives slabs back to the pool until the window has no more than `slabs`: empty ones at once, and those that are out
  // when they return.
  void ShrinkTo(int64_t slabs);
  void Close();

 private:
  friend class SlabPool;
  SlabWindow(SlabPool* pool, int64_t id) : pool_(pool), id_(id) {}

  SlabPool* const pool_;
  const int64_t id_;
};

// Thread-safe. Its mutex may be taken while the scheduler's is held, never the other way round: callbacks run
// without it.
class SlabPool {
 public:
  // `memory` holds at least slab_bytes * slab_count bytes, aligned for any value; all of it is touched here. `on_free`
  // runs, holding no lock, whenever reservations end, since then a TryReserve that failed may succeed.
  SlabPool(std::shared_ptr<uint8_t> memory, int64_t slab_bytes, int64_t slab_count, std::function<void()> on_free);
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  // Reserves `slabs` slabs, or reserves none and returns null. `on_return` runs, holding no lock, whenever one of them
  // comes back while the window is open.
  std::unique_ptr<SlabWindow> TryReserve(int64_t slabs, std::function<void()> on_return);

  int64_t slab_bytes() const { return slab_bytes_; }

  struct Counts {
    int64_t free = 0;      // in no window
    int64_t reserved = 0;  // in a window, empty
    int64_t filled = 0;    // handed out
  };
  Counts counts() const;

 private:
  friend class SlabWindow;

  // The pool's record of a window, kept until the window is closed and its last slab is back.
  struct Reservation {
    int64_t free_slabs = 0;  // none once it is closed
    int64_t slabs_out = 0;
    int64_t surplus = 0;  // how many of slabs_out go to the pool when they return
    bool closed = false;
    std::shared_ptr<const std::function<void()>> on_return;
  };

  SlabRef Take(int64_t window);
  void Return(uint8_t* slab, int64_t window);
  void Shrink(int64_t window, int64_t slabs);
  void CloseWindow(int64_t window);

  const std::shared_ptr<uint8_t> memory_;
  const int64_t slab_bytes_;
  const int64_t slab_count_;
  const std::function<void()> on_free_;
  mutable absl::Mutex mutex_;
  std::vector<uint8_t*> empty_ ABSL_GUARDED_BY(mutex_);
  int64_t unreserved_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<int64_t, Reservation> reservations_ ABSL_GUARDED_BY(mutex_);
  int64_t next_window_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SLAB_POOL_H_
