#include "server/base/shuffled_order.h"

#include "server/base/mix.h"

namespace hookline {

ShuffledOrder::ShuffledOrder(int64_t size, uint64_t seed) : size_(size), seed_(seed), half_bits_(1) {
  while ((uint64_t{1} << (2 * half_bits_)) < static_cast<uint64_t>(size)) ++half_bits_;
}

uint64_t ShuffledOrder::Permute(uint64_t value) const {
  constexpr int kRounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = left ^ (Mix(seed_ ^ Mix(right + (round << 56))) & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

int64_t ShuffledOrder::operator[](int64_t index) const {
  uint64_t value = index;
  do {
    value = Permute(value);
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

}  // namespace hookline
