#include "server/capture/row_packing.h"

#include <vector>

#include "gtest/gtest.h"

namespace hookline {
namespace {

TEST(RowPackingTest, RowsFollowEachOtherAndNoneIsCutByASlab) {
  RowPacking packing(/*slab_bytes=*/100);
  std::vector<RowPacking::Piece> pieces;
  const auto keep = [&](const RowPacking::Piece& piece) { pieces.push_back(piece); };
  packing.Add(/*rows=*/3, /*row_bytes=*/40, keep);
  packing.Add(/*rows=*/2, /*row_bytes=*/30, keep);
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_TRUE(pieces[0].opens_slab);
  EXPECT_EQ(pieces[0].rows, 2);
  EXPECT_TRUE(pieces[1].opens_slab);
  EXPECT_EQ(pieces[1].rows, 1);
  EXPECT_FALSE(pieces[2].opens_slab);
  EXPECT_EQ(pieces[2].offset, 40);
  EXPECT_EQ(pieces[2].rows, 2);
  EXPECT_EQ(packing.slabs(), 2);
}

TEST(RowPackingTest, CountingTakesTheSlabsThatPlacingTakes) {
  for (int64_t first = 0; first <= 12; ++first) {
    for (int64_t second = 0; second <= 12; ++second) {
      RowPacking placed(100), counted(100);
      for (const auto& [rows, row_bytes] :
           {std::pair<int64_t, int64_t>{first, 24}, {second, 33}, {first, 100}, {7, 1}}) {
        placed.Add(rows, row_bytes, [](const RowPacking::Piece&) {});
        counted.Skip(rows, row_bytes);
        EXPECT_EQ(placed.slabs(), counted.slabs()) << first << " rows, then " << second;
      }
    }
  }
}

}  // namespace
}  // namespace hookline
