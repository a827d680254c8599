// Slabs for tests, with memory of their own, counted until they return.
#ifndef HOOKLINE_TESTS_SERVICE_SLABS_H_
#define HOOKLINE_TESTS_SERVICE_SLABS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/slab_pool.h"

namespace hookline {

// Thread-safe. Slabs may outlive this object.
class CountedSlabs {
 public:
  // Returns a slab of `bytes` bytes. `on_return` runs after the slab has returned.
  SlabRef Take(int64_t bytes, std::function<void()> on_return = {}) {
    {
      absl::MutexLock lock(&state_->mutex);
      ++state_->out;
    }
    auto memory = std::make_shared<std::vector<uint8_t>>(bytes);
    uint8_t* data = memory->data();
    return SlabRef(data, bytes, [state = state_, memory, on_return = std::move(on_return)] {
      {
        absl::MutexLock lock(&state->mutex);
        --state->out;
      }
      if (on_return) on_return();
    });
  }

  SlabSpan Copy(const std::string& content) {
    SlabSpan span{Take(static_cast<int64_t>(content.size())), 0, static_cast<int64_t>(content.size())};
    std::copy(content.begin(), content.end(), span.data());
    return span;
  }

  int64_t out() const {
    absl::MutexLock lock(&state_->mutex);
    return state_->out;
  }

  // Returns whether all slabs returned within `timeout`.
  bool WaitUntilBack(absl::Duration timeout) const {
    State* state = state_.get();
    absl::MutexLock lock(&state->mutex);
    auto none_out = [state]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mutex) { return state->out == 0; };
    return state->mutex.AwaitWithTimeout(absl::Condition(&none_out), timeout);
  }

 private:
  struct State {
    mutable absl::Mutex mutex;
    int64_t out ABSL_GUARDED_BY(mutex) = 0;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_SLABS_H_
