#include "server/model/hook_points.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int kNoLimit = 4096;

// Returns twelve layers of three hook points between an embedding and a norm, with the original collector's alias.
HookPoints TwelveLayers() {
  std::vector<HookPoint> points = {{"hook_embed", 8, -1, "The embedding."}};
  absl::flat_hash_map<std::string, int> aliases;
  for (int i = 0; i < 12; ++i) {
    points.push_back({absl::StrCat("blocks.", i, ".hook_resid_pre"), 8, i, "The block's input."});
    aliases[absl::StrCat("blocks.", i, ".hook_attn")] = static_cast<int>(points.size());
    points.push_back({absl::StrCat("blocks.", i, ".hook_attn_out"), 8, i, "What attention adds."});
    points.push_back({absl::StrCat("blocks.", i, ".hook_resid_post"), 8, i, "The block's output."});
  }
  points.push_back({"ln_final.hook_normalized", 8, 12, "The last norm."});
  return HookPoints(std::move(points), std::move(aliases));
}

std::vector<std::string> Names(const HookPoints& points, const std::vector<std::string>& patterns) {
  auto resolved = points.Resolve(patterns, kNoLimit);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  std::vector<std::string> names;
  if (!resolved.ok()) return names;
  for (const ResolvedHookPoint& point : *resolved) {
    EXPECT_EQ(points.Find(point.name), point.index);
    names.push_back(point.name);
  }
  return names;
}

void ExpectRefused(const HookPoints& points, const std::vector<std::string>& patterns, const std::string& field,
                   const std::string& message, int max_hook_points = kNoLimit) {
  absl::Status status = points.Resolve(patterns, max_hook_points).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(status), field);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(HookPointsTest, NamesComeInTheOrderInWhichTheyWereGiven) {
  EXPECT_THAT(Names(TwelveLayers(), {"ln_final.hook_normalized", "hook_embed", "blocks.11.hook_resid_post"}),
              ElementsAre("ln_final.hook_normalized", "hook_embed", "blocks.11.hook_resid_post"));
}

TEST(HookPointsTest, AStarCrossesDotsAndItsMatchesComeInTheOrderOfTheModel) {
  HookPoints points = TwelveLayers();
  EXPECT_THAT(Names(points, {"blocks.*.hook_resid_post"}), SizeIs(12));
  EXPECT_THAT(Names(points, {"blocks.1*post"}),
              ElementsAre("blocks.1.hook_resid_post", "blocks.10.hook_resid_post", "blocks.11.hook_resid_post"));
  EXPECT_THAT(Names(points, {"*"}), SizeIs(points.size()));
  EXPECT_THAT(Names(points, {"*hook_embed*"}), ElementsAre("hook_embed"));
}

TEST(HookPointsTest, BracesListAlternatives) {
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.{5,2}.hook_resid_{pre,post}"}),
              ElementsAre("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.5.hook_resid_pre",
                          "blocks.5.hook_resid_post"));
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.{2,5}.*"}), SizeIs(6));
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.3.{hook_attn*,*_post}"}),
              ElementsAre("blocks.3.hook_attn_out", "blocks.3.hook_resid_post"));
}

TEST(HookPointsTest, EverythingElseIsLiteral) {
  HookPoints points({{"first[0]", 8, 0, ""}, {"norm@0", 8, 0, ""}, {"a.b", 8, 0, ""}});
  EXPECT_THAT(Names(points, {"first[0]", "norm@0"}), ElementsAre("first[0]", "norm@0"));
  EXPECT_THAT(Names(points, {"*[0]"}), ElementsAre("first[0]"));
  ExpectRefused(points, {"a?b"}, "hook_points[0]", "is not a hook point");
  ExpectRefused(points, {"*a?b"}, "hook_points[0]", "matches none");
}

TEST(HookPointsTest, WhatOverlapsIsMergedAtItsFirstPlace) {
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.3.hook_resid_post", "blocks.{2,3}.hook_resid_post", "blocks.3.*post"}),
              ElementsAre("blocks.3.hook_resid_post", "blocks.2.hook_resid_post"));
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.{2,3}.hook_resid_post", "blocks.3.hook_resid_post"}),
              ElementsAre("blocks.2.hook_resid_post", "blocks.3.hook_resid_post"));
}

TEST(HookPointsTest, AnAliasKeepsTheNameThatWasAskedFor) {
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.4.hook_attn"}), ElementsAre("blocks.4.hook_attn"));
  EXPECT_THAT(Names(TwelveLayers(), {"blocks.{4,5}.hook_attn_out", "blocks.5.hook_attn"}),
              ElementsAre("blocks.4.hook_attn_out", "blocks.5.hook_attn"));
  ExpectRefused(TwelveLayers(), {"blocks.*.hook_attn"}, "hook_points[0]", "matches none");
}

TEST(HookPointsTest, ANameGivenTwiceIsRefused) {
  ExpectRefused(TwelveLayers(), {"hook_embed", "blocks.1.hook_attn_out", "hook_embed"}, "hook_points[2]",
                "'hook_embed' is given twice, first as hook_points[0]");
  ExpectRefused(TwelveLayers(), {"blocks.1.hook_attn_out", "blocks.1.hook_attn"}, "hook_points[1]",
                "hook_points[0], 'blocks.1.hook_attn_out', names the same hook point");
  ExpectRefused(TwelveLayers(), {"*", "*"}, "hook_points[1]", "given twice");
}

TEST(HookPointsTest, AnUnknownNameIsRefusedWithTheNearest) {
  ExpectRefused(TwelveLayers(), {"hook_embed", "blocks.3.hook_resid_pots"}, "hook_points[1]",
                "'blocks.3.hook_resid_pots' is not a hook point of this model; nearest: blocks.3.hook_resid_post, ");
  ExpectRefused(TwelveLayers(), {"blocks.12.hook_resid_post"}, "hook_points[0]", "nearest: blocks.");
  EXPECT_THAT(TwelveLayers().Nearest("embed", 1), ElementsAre("hook_embed"));
  EXPECT_THAT(HookPoints().Nearest("embed", 1), IsEmpty());
}

TEST(HookPointsTest, AWildcardWithoutMatchIsRefused) {
  ExpectRefused(TwelveLayers(), {"blocks.{12,13}.hook_resid_post"}, "hook_points[0]",
                "matches none of this model's 38");
  ExpectRefused(TwelveLayers(), {"block.*"}, "hook_points[0]", "'block.*' matches none");
}

TEST(HookPointsTest, AMalformedWildcardIsRefused) {
  for (const char* pattern : {"blocks.{2", "blocks.2}", "blocks.{}", "blocks.{2,}", "blocks.{2,{3}}"}) {
    ExpectRefused(TwelveLayers(), {pattern}, "hook_points[0]", "is malformed: ");
  }
  ExpectRefused(TwelveLayers(), {""}, "hook_points[0]", "empty");
}

TEST(HookPointsTest, NothingAskedForIsRefused) { ExpectRefused(TwelveLayers(), {}, "hook_points", "none were given"); }

TEST(HookPointsTest, MoreThanTheLimitIsRefusedBeforeAndAfterExpansion) {
  ExpectRefused(TwelveLayers(), {"*"}, "hook_points", "38 hook points after expansion; at most 37", 37);
  EXPECT_TRUE(TwelveLayers().Resolve({"*"}, 38).ok());
  ExpectRefused(TwelveLayers(), {"hook_embed", "*"}, "hook_points", "2 entries; at most 1", 1);
}

TEST(HookPointsTest, ARefusedNameIsAnsweredWithItsReason) {
  HookPoints points({{"first[0]", 32, 0, ""}}, /*aliases=*/{}, /*refused=*/{{"first", "returns a tuple"}});
  ExpectRefused(points, {"first"}, "hook_points[0]", "'first' returns a tuple");
  ExpectRefused(points, {"frist"}, "hook_points[0]", "nearest: first[0]");
}

TEST(HookPointsTest, WhatAHostileClientSendsIsAnsweredShortly) {
  ExpectRefused(TwelveLayers(), {std::string(1 << 20, 'x')}, "hook_points[0]", "has 1048576 bytes");
  EXPECT_LT(TwelveLayers().Resolve({std::string(1 << 20, '\xff')}, kNoLimit).status().message().size(), 1000u);
  ExpectRefused(TwelveLayers(), {std::string(1024, '*') + "z"}, "hook_points[0]", "has 1025 bytes");
  ExpectRefused(TwelveLayers(), {std::string(1023, '*') + "z"}, "hook_points[0]", "matches none");
  std::vector<std::string> many;
  for (int i = 0; i < 300; ++i) many.push_back(absl::StrCat("{*,", i, "}"));
  ExpectRefused(TwelveLayers(), many, "hook_points[256]", "more than 256 wildcards");
  std::vector<std::string> long_ones;
  for (int i = 0; i < 17; ++i) long_ones.push_back(std::string(1024 - i, '*'));
  ExpectRefused(TwelveLayers(), long_ones, "hook_points[16]", "more than 16384 bytes");
}

// Matches in the slow and obvious way: tries every length for every `*`.
bool SlowlyMatches(absl::string_view pattern, absl::string_view name) {
  if (pattern.empty()) return name.empty();
  if (pattern[0] == '{') {
    const size_t end = pattern.find('}');
    for (absl::string_view alternative : absl::StrSplit(pattern.substr(1, end - 1), ',')) {
      if (SlowlyMatches(absl::StrCat(alternative, pattern.substr(end + 1)), name)) return true;
    }
    return false;
  }
  if (pattern[0] == '*') {
    return SlowlyMatches(pattern.substr(1), name) || (!name.empty() && SlowlyMatches(pattern, name.substr(1)));
  }
  return !name.empty() && pattern[0] == name[0] && SlowlyMatches(pattern.substr(1), name.substr(1));
}

TEST(HookPointsTest, WildcardsMatchWhatTheSlowAndObviousWayMatches) {
  std::mt19937 random(5);
  const auto text = [&](size_t length, absl::string_view letters) {
    std::string out;
    while (out.size() < length) out.push_back(letters[random() % letters.size()]);
    return out;
  };
  for (int round = 0; round < 3000; ++round) {
    // Some lengths lie around multiples of 64 bits.
    const size_t length = round % 3 == 0 ? 60 + random() % 70 : 1 + random() % 8;
    const std::string name = text(length, "ab");
    std::string pattern = round % 3 == 0 ? absl::StrCat("*", name.substr(random() % length)) : "";
    for (size_t part = 0; part < random() % 4; ++part) {
      absl::StrAppend(&pattern, text(random() % 3, "ab*"));
      if (random() % 2 == 0) absl::StrAppend(&pattern, "{", text(1 + random() % 2, "ab*"), ",", text(1, "ab*"), "}");
    }
    pattern = absl::StrCat(pattern, "{*,a}");
    if (random() % 2 == 0) pattern.resize(pattern.size() - 5);
    if (pattern.find_first_of("*{") == std::string::npos) continue;
    const HookPoints points({{name, 8, 0, ""}});
    EXPECT_EQ(points.Resolve({pattern}, 10).ok(), SlowlyMatches(pattern, name)) << pattern << " and " << name;
  }
}

}  // namespace
}  // namespace hookline
