#include "server/base/slab_pool.h"

#include <cstdlib>
#include <vector>

#include "gtest/gtest.h"

namespace hookline {
namespace {

class SlabPoolTest : public ::testing::Test {
 protected:
  SlabPoolTest()
      : pool_(std::shared_ptr<uint8_t>(static_cast<uint8_t*>(std::aligned_alloc(4096, 4 * 4096)), std::free), 4096, 4,
              [this] { ++freed_; }) {}

  int freed_ = 0;
  int returned_ = 0;
  SlabPool pool_;
};

TEST_F(SlabPoolTest, AWindowIsReservedWholeOrNotAtAll) {
  auto three = pool_.TryReserve(3, [this] { ++returned_; });
  ASSERT_NE(three, nullptr);
  EXPECT_EQ(pool_.TryReserve(2, [] {}), nullptr);
  EXPECT_NE(pool_.TryReserve(1, [] {}), nullptr);
}

TEST_F(SlabPoolTest, AWindowGivesItsSlabsAndNoMore) {
  auto window = pool_.TryReserve(2, [this] { ++returned_; });
  SlabRef a = window->Take(), b = window->Take();
  EXPECT_TRUE(a);
  EXPECT_TRUE(b);
  EXPECT_NE(a.data(), b.data());
  EXPECT_FALSE(window->Take());
  EXPECT_EQ(window->held_slabs(), 2);
  SlabRef copy = a;
  a.reset();
  EXPECT_EQ(returned_, 0);
  copy.reset();
  EXPECT_EQ(returned_, 1);
  EXPECT_TRUE(window->Take());
}

TEST_F(SlabPoolTest, AClosedWindowsSlabsAreFreeAsTheyComeBack) {
  auto window = pool_.TryReserve(4, [this] { ++returned_; });
  SlabRef held = window->Take();
  window->Close();
  EXPECT_EQ(freed_, 1);
  EXPECT_EQ(pool_.counts().free, 3);
  EXPECT_EQ(pool_.counts().filled, 1);
  EXPECT_FALSE(window->Take());
  EXPECT_EQ(window->held_slabs(), 1);
  held.reset();
  EXPECT_EQ(window->held_slabs(), 0);
  EXPECT_EQ(freed_, 2);
  EXPECT_EQ(returned_, 0);
  EXPECT_EQ(pool_.counts().free, 4);
}

TEST_F(SlabPoolTest, SlabsOutliveTheirWindow) {
  SlabRef held;
  {
    auto window = pool_.TryReserve(1, [] {});
    held = window->Take();
  }
  held.data()[4095] = 1;
  held.reset();
  EXPECT_EQ(pool_.counts().free, 4);
}

}  // namespace
}  // namespace hookline
