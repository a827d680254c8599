// A fixed 64-bit hash of one number, for choices that a seed alone decides.
#ifndef HOOKLINE_SERVER_BASE_MIX_H_
#define HOOKLINE_SERVER_BASE_MIX_H_

#include <cstdint>

namespace hookline {

// The output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). Orders
// and samples that clients have seen depend on it, so it never changes.
constexpr uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_MIX_H_
