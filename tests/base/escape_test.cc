#include "server/base/escape.h"

#include <string>

#include "gtest/gtest.h"

namespace hookline {
namespace {

TEST(EscapedTest, PrintableTextStaysAsItIs) {
  for (const std::string text :
       {"", "blocks.0.hook_resid_post", "a\\x1b", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "~ !"}) {
    EXPECT_EQ(Escaped(text), text);
  }
}

TEST(EscapedTest, ControlCharactersAreEscapes) {
  EXPECT_EQ(Escaped("a\nb\tc\rd\x1b[31m\x7f"), "a\\nb\\tc\\rd\\x1b[31m\\x7f");
  EXPECT_EQ(Escaped(std::string("nul\0l", 5)), "nul\\x00l");
  EXPECT_EQ(Escaped("\xc2\x9b"
                    "31m"),
            "\\xc2\\x9b31m");  // the one-character CSI
}

TEST(EscapedTest, WhatReversesOrBreaksLinesIsEscaped) {
  EXPECT_EQ(Escaped("\xe2\x80\xae"
                    "exe"),
            "\\xe2\\x80\\xaeexe");
  EXPECT_EQ(Escaped("\xe2\x80\xa8"), "\\xe2\\x80\\xa8");
  EXPECT_EQ(Escaped("\xe2\x81\xa6"), "\\xe2\\x81\\xa6");
  EXPECT_EQ(Escaped("\xd8\x9c\xef\xbb\xbf"), "\\xd8\\x9c\\xef\\xbb\\xbf");
}

TEST(EscapedTest, BytesThatAreNotUtf8AreEscapes) {
  EXPECT_EQ(Escaped("\xff"
                    "a\xc3"),
            "\\xffa\\xc3");
  EXPECT_EQ(Escaped("\xc0\xaf"), "\\xc0\\xaf");           // overlong
  EXPECT_EQ(Escaped("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(Escaped("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Escaped("\xe2\x82"), "\\xe2\\x82");
}

TEST(EscapedTest, TwiceIsOnceForAnyBytes) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string text = {static_cast<char>(first), static_cast<char>(second), 'z'};
      const std::string once = Escaped(text);
      ASSERT_EQ(Escaped(once), once);
      for (const char c : once) ASSERT_GE(static_cast<unsigned char>(c), 0x20);
    }
  }
}

TEST(QuotedTest, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(Quoted("abc"), "'abc'");
  EXPECT_EQ(Quoted("abc", 2), "'ab...'");
  EXPECT_EQ(Quoted("a\xc3\xa9", 2), "'a...'");
  EXPECT_EQ(Quoted("\n"), "'\\n'");
}

}  // namespace
}  // namespace hookline
