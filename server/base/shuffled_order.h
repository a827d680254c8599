// A permutation of the numbers 0 to size - 1 that a seed alone decides, without a table.
//
//   const ShuffledOrder order(/*size=*/1000, /*seed=*/7);
//   for (int64_t i = 0; i < 1000; ++i) Read(order[i]);   // each number once
#ifndef HOOKLINE_SERVER_BASE_SHUFFLED_ORDER_H_
#define HOOKLINE_SERVER_BASE_SHUFFLED_ORDER_H_

#include <cstdint>

namespace hookline {

// Immutable. The permutation is a Feistel network with cycle walking (Black, Rogaway: Ciphers with arbitrary finite
// domains, 2002), so that others can compute it too, and it never changes:
//
//   h         the least number of at least 1 with 4^h >= size
//   mask      2^h - 1
//   round r   (left, right) becomes (right, left xor (mix(seed xor mix(right + (r << 56))) and mask)),
//             in 64-bit arithmetic, with mix of mix.h
//   network   rounds 0 to 5 on left = x >> h, right = x and mask; the result is (left << h) or right
//
// The number at index i is the first one below size of network(i), network(network(i)), ... That takes fewer than four
// steps on average, because the network permutes fewer than 4 size numbers (four, if size is 1).
class ShuffledOrder {
 public:
  // `size` is from 1 to 2^62.
  ShuffledOrder(int64_t size, uint64_t seed);

  // Returns the number at `index`, 0 <= index < size.
  int64_t operator[](int64_t index) const;

 private:
  uint64_t Permute(uint64_t value) const;

  int64_t size_;
  uint64_t seed_;
  int half_bits_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SHUFFLED_ORDER_H_
