#include "client/cpp/streaming_copy.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace hookline::client {
namespace {

TEST(StreamingCopy, CopiesEveryByteAndNoOtherFromAnywhereToAnywhere) {
  std::vector<uint8_t> source(200'000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{65'535}, size_t{65'536}, size_t{65'537}, size_t{131'071}}) {
    for (size_t from : {0, 1, 4, 63}) {
      for (size_t to : {0, 1, 2, 31, 64, 65}) {
        std::vector<uint8_t> copy(source.size(), 7), expected = copy;
        std::copy_n(source.begin() + from, bytes, expected.begin() + to);
        StreamingCopy(copy.data() + to, source.data() + from, bytes);
        ASSERT_EQ(copy, expected) << bytes << " bytes from " << from << " to " << to;
      }
    }
  }
}

}  // namespace
}  // namespace hookline::client
