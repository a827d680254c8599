#include "server/base/slab_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "server/base/lock_order.h"

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

SlabRef SlabWindow::Take() { return pool_->Take(id_); }

int64_t SlabWindow::free_slabs() const {
  RankedLock lock(&pool_->mutex_, LockRank::kSlabPool);
  const auto found = pool_->reservations_.find(id_);
  return found == pool_->reservations_.end() ? 0 : found->second.free_slabs;
}

int64_t SlabWindow::held_slabs() const {
  RankedLock lock(&pool_->mutex_, LockRank::kSlabPool);
  const auto found = pool_->reservations_.find(id_);
  return found == pool_->reservations_.end() ? 0 : found->second.slabs_out + found->second.free_slabs;
}

void SlabWindow::ShrinkTo(int64_t slabs) { pool_->Shrink(id_, slabs); }

void SlabWindow::Close() { pool_->CloseWindow(id_); }

SlabPool::SlabPool(std::shared_ptr<uint8_t> memory, int64_t slab_bytes, int64_t slab_count,
                   std::function<void()> on_free)
    : memory_(std::move(memory)),
      slab_bytes_(slab_bytes),
      slab_count_(slab_count),
      on_free_(std::move(on_free)),
      unreserved_(slab_count) {
  // The memory is zeroed, not merely touched, so that no bug can send old data of another process.
  std::memset(memory_.get(), 0, static_cast<size_t>(slab_bytes * slab_count));
  empty_.reserve(slab_count);
  for (int64_t i = slab_count - 1; i >= 0; --i) empty_.push_back(memory_.get() + i * slab_bytes);
}

SlabPool::~SlabPool() = default;

std::unique_ptr<SlabWindow> SlabPool::TryReserve(int64_t slabs, std::function<void()> on_return) {
  RankedLock lock(&mutex_, LockRank::kSlabPool);
  if (unreserved_ < slabs) return nullptr;
  unreserved_ -= slabs;
  const int64_t window = next_window_++;
  Reservation& reservation = reservations_[window];
  reservation.free_slabs = slabs;
  reservation.on_return = std::make_shared<const std::function<void()>>(std::move(on_return));
  return std::unique_ptr<SlabWindow>(new SlabWindow(this, window));
}

SlabPool::Counts SlabPool::counts() const {
  RankedLock lock(&mutex_, LockRank::kSlabPool);
  Counts counts;
  counts.free = unreserved_;
  counts.filled = slab_count_ - static_cast<int64_t>(empty_.size());
  counts.reserved = slab_count_ - counts.free - counts.filled;
  return counts;
}

SlabRef SlabPool::Take(int64_t window) {
  uint8_t* slab = nullptr;
  {
    RankedLock lock(&mutex_, LockRank::kSlabPool);
    const auto found = reservations_.find(window);
    if (found == reservations_.end() || found->second.free_slabs == 0) return {};
    --found->second.free_slabs;
    ++found->second.slabs_out;
    slab = empty_.back();
    empty_.pop_back();
  }
  return SlabRef(slab, slab_bytes_, [this, slab, window] { Return(slab, window); });
}

void SlabPool::Return(uint8_t* slab, int64_t window) {
  std::shared_ptr<const std::function<void()>> on_return;
  bool is_free = false;  // for other windows
  {
    RankedLock lock(&mutex_, LockRank::kSlabPool);
    empty_.push_back(slab);
    const auto found = reservations_.find(window);  // there, because this slab was out
    Reservation& reservation = found->second;
    --reservation.slabs_out;
    is_free = reservation.closed || reservation.surplus > 0;
    if (!is_free) {
      ++reservation.free_slabs;
    } else {
      ++unreserved_;
      if (reservation.surplus > 0) --reservation.surplus;
    }
    on_return = reservation.on_return;  // null once it is closed
    if (reservation.closed && reservation.slabs_out == 0) reservations_.erase(found);
  }
  // Callbacks can run without the lock, because what they wake looks at the pool's state, not at who woke it.
  if (on_return != nullptr) (*on_return)();
  if (is_free) on_free_();
}

void SlabPool::Shrink(int64_t window, int64_t slabs) {
  {
    RankedLock lock(&mutex_, LockRank::kSlabPool);
    const auto found = reservations_.find(window);
    if (found == reservations_.end() || found->second.closed) return;
    Reservation& reservation = found->second;
    const int64_t over = reservation.free_slabs + reservation.slabs_out - reservation.surplus - slabs;
    if (over <= 0) return;
    const int64_t at_once = std::min(over, reservation.free_slabs);
    reservation.free_slabs -= at_once;
    unreserved_ += at_once;
    reservation.surplus += over - at_once;
    if (at_once == 0) return;
  }
  on_free_();
}

void SlabPool::CloseWindow(int64_t window) {
  std::shared_ptr<const std::function<void()>> on_return;  // its destructor may take locks
  {
    RankedLock lock(&mutex_, LockRank::kSlabPool);
    const auto found = reservations_.find(window);
    if (found == reservations_.end() || found->second.closed) return;
    Reservation& reservation = found->second;
    reservation.closed = true;
    on_return = std::move(reservation.on_return);
    unreserved_ += std::exchange(reservation.free_slabs, 0);
    if (reservation.slabs_out == 0) reservations_.erase(found);
  }
  on_free_();
}

}  // namespace hookline
