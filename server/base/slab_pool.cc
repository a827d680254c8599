#include "server/base/slab_pool.h"

#include <cstring>
#include <utility>

namespace hookline {

SlabRef::SlabRef(uint8_t* data, int64_t bytes, std::function<void()> return_slab)
    : holder_(std::make_shared<Holder>()) {
  holder_->data = data;
  holder_->bytes = bytes;
  holder_->return_slab = std::move(return_slab);
}

SlabRef::Holder::~Holder() {
  if (return_slab) return_slab();
}

// Guarded by the pool's mutex.
struct SlabWindow::State {
  SlabPool* pool = nullptr;
  int64_t free_slabs = 0;
  int64_t slabs_out = 0;
  bool closed = false;
  std::function<void()> on_return;
};

SlabWindow::~SlabWindow() { Close(); }

SlabRef SlabWindow::Take() {
  SlabPool& pool = *state_->pool;
  uint8_t* slab = nullptr;
  {
    absl::MutexLock lock(&pool.mu_);
    if (state_->closed || state_->free_slabs == 0) return {};
    --state_->free_slabs;
    ++state_->slabs_out;
    slab = pool.empty_.back();
    pool.empty_.pop_back();
  }
  return SlabRef(slab, pool.slab_bytes_, [&pool, slab, state = state_] { pool.Return(slab, *state); });
}

int64_t SlabWindow::free_slabs() const {
  absl::MutexLock lock(&state_->pool->mu_);
  return state_->closed ? 0 : state_->free_slabs;
}

int64_t SlabWindow::held_slabs() const {
  absl::MutexLock lock(&state_->pool->mu_);
  return state_->slabs_out + (state_->closed ? 0 : state_->free_slabs);
}

void SlabWindow::Close() {
  SlabPool& pool = *state_->pool;
  {
    absl::MutexLock lock(&pool.mu_);
    if (state_->closed) return;
    state_->closed = true;
    pool.unreserved_ += state_->free_slabs;
  }
  pool.on_free_();
}

SlabPool::SlabPool(std::shared_ptr<uint8_t> memory, int64_t slab_bytes, int64_t slab_count,
                   std::function<void()> on_free)
    : memory_(std::move(memory)),
      slab_bytes_(slab_bytes),
      slab_count_(slab_count),
      on_free_(std::move(on_free)),
      unreserved_(slab_count) {
  // Zeroed, not merely touched: what a bug would send early must not be another process's old memory.
  std::memset(memory_.get(), 0, static_cast<size_t>(slab_bytes * slab_count));
  empty_.reserve(slab_count);
  for (int64_t i = slab_count - 1; i >= 0; --i) empty_.push_back(memory_.get() + i * slab_bytes);
}

SlabPool::~SlabPool() = default;

std::unique_ptr<SlabWindow> SlabPool::TryReserve(int64_t slabs, std::function<void()> on_return) {
  absl::MutexLock lock(&mu_);
  if (unreserved_ < slabs) return nullptr;
  unreserved_ -= slabs;
  auto state = std::make_shared<SlabWindow::State>();
  state->pool = this;
  state->free_slabs = slabs;
  state->on_return = std::move(on_return);
  return std::unique_ptr<SlabWindow>(new SlabWindow(std::move(state), slabs));
}

SlabPool::Counts SlabPool::counts() const {
  absl::MutexLock lock(&mu_);
  Counts counts;
  counts.free = unreserved_;
  counts.filled = slab_count_ - static_cast<int64_t>(empty_.size());
  counts.reserved = slab_count_ - counts.free - counts.filled;
  return counts;
}

void SlabPool::Return(uint8_t* slab, SlabWindow::State& window) {
  bool closed;
  {
    absl::MutexLock lock(&mu_);
    empty_.push_back(slab);
    --window.slabs_out;
    closed = window.closed;
    if (closed) {
      ++unreserved_;
    } else {
      ++window.free_slabs;
    }
  }
  // Running either without the lock is safe: what they wake looks at the pool's state, not at who woke it.
  if (closed) {
    on_free_();
  } else {
    window.on_return();
  }
}

}  // namespace hookline
