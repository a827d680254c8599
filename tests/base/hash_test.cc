#include "server/base/hash.h"

#include <xxhash.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace hookline {
namespace {

TEST(HashTest, PiecesHashAsTheWhole) {
  std::string whole;
  for (int i = 0; i < 10000; ++i) absl::StrAppend(&whole, i, " ");
  Xxh3 hash;
  hash.Update("of something else");
  hash.Reset();
  for (size_t at = 0; at < whole.size(); at += 777) hash.Update(absl::string_view(whole).substr(at, 777));
  const XXH128_hash_t expected = XXH3_128bits(whole.data(), whole.size());
  EXPECT_EQ(hash.hash().low, expected.low64);
  EXPECT_EQ(hash.hash().high, expected.high64);
  EXPECT_EQ(hash.hex(),
            absl::StrCat(absl::Hex(expected.high64, absl::kZeroPad16), absl::Hex(expected.low64, absl::kZeroPad16)));
  EXPECT_EQ(hash.hash64(), XXH3_64bits(whole.data(), whole.size()));
  EXPECT_EQ(Xxh3Of64Bits(whole), hash.hash64());
}

TEST(HashTest, TextsWithTheirLengthsAreToldApart) {
  Xxh3 one, other;
  for (const char* text : {"ab", "c"}) one.UpdateWithLength(text);
  for (const char* text : {"a", "bc"}) other.UpdateWithLength(text);
  EXPECT_NE(one.hex(), other.hex());
}

}  // namespace
}  // namespace hookline
