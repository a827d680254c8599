#include "server/base/shuffled_order.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

std::vector<int64_t> All(int64_t size, uint64_t seed) {
  const ShuffledOrder order(size, seed);
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < size; ++i) numbers.push_back(order[i]);
  return numbers;
}

TEST(ShuffledOrderTest, IsAPermutationOfEverySize) {
  for (int64_t size : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    std::vector<bool> seen(size);
    for (int64_t number : All(size, /*seed=*/7)) {
      ASSERT_GE(number, 0);
      ASSERT_LT(number, size);
      EXPECT_FALSE(seen[number]) << number << " twice of " << size;
      seen[number] = true;
    }
  }
}

TEST(ShuffledOrderTest, SeedsDiffer) {
  EXPECT_EQ(All(1000, 1), All(1000, 1));
  EXPECT_NE(All(1000, 1), All(1000, 2));
}

// Clients and recordings rely on the order: these numbers must never change.
TEST(ShuffledOrderTest, IsWhatItAlwaysWas) {
  EXPECT_EQ(All(10, 7), (std::vector<int64_t>{9, 6, 2, 0, 7, 1, 5, 3, 4, 8}));
  EXPECT_EQ(ShuffledOrder(int64_t{1} << 40, 7)[123456789], 103109192742);
}

TEST(ShuffledOrderTest, MovesAlmostEveryNumberFarAway) {
  const std::vector<int64_t> numbers = All(10000, 3);
  double distance = 0;
  for (int64_t i = 0; i < 10000; ++i) distance += static_cast<double>(std::abs(numbers[i] - i));
  // A random permutation gives a third of the size, with a standard deviation of 24.
  EXPECT_NEAR(distance / 10000, 10000.0 / 3, 200);
}

}  // namespace
}  // namespace hookline
