// Slabs: fixed pieces of host memory that hold rows on their way out. All are allocated and touched once, at start, and
// reused; nothing is allocated per row afterwards.
//
// Ownership: SlabPool::Take hands out a slab as a SlabRef; copies share it, and when the last is gone the slab returns
// to its pool, from whichever thread that happens on. The pool must outlive every SlabRef.
#ifndef HOOKLINE_SERVER_BASE_SLAB_POOL_H_
#define HOOKLINE_SERVER_BASE_SLAB_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace hookline {

class SlabPool;

// A shared reference to one slab. Thread-safe in the way of shared_ptr.
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

// A run of bytes inside a slab, which it keeps alive.
struct SlabSpan {
  SlabRef slab;
  int64_t offset = 0;
  int64_t bytes = 0;

  uint8_t* data() const { return slab.data() + offset; }
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SLAB_POOL_H_
