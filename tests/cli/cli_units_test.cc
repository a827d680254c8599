#include <string>
#include <vector>

#include "client/cli/capture_run.h"
#include "client/cli/files/row_files.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "gmock/gmock.h"

namespace hookline::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::StartsWith;

TEST(SplitHookPoints, CutsAtCommasOutsideBraces) {
  EXPECT_THAT(SplitHookPoints("blocks.{2,5}.*,hook_embed"), ElementsAre("blocks.{2,5}.*", "hook_embed"));
  EXPECT_THAT(SplitHookPoints("a}b,c{d,e"), ElementsAre("a}b", "c{d,e"));
  EXPECT_THAT(SplitHookPoints("a,"), ElementsAre("a", ""));
}

TEST(FileNames, AreDifferentAndStayInTheDirectory) {
  const std::vector<std::string> names =
      FileNames({"blocks.0.hook_z", "../../etc/passwd", "a/b", "a_b", "A_B", ".hidden", "", std::string(300, 'x')});
  EXPECT_THAT(names, ElementsAre("blocks.0.hook_z.safetensors", "_.._.._etc_passwd.safetensors", "a_b.safetensors",
                                 "a_b-2.safetensors", "A_B-3.safetensors", "_.hidden.safetensors", "_.safetensors",
                                 std::string(200, 'x') + ".safetensors"));
}

TEST(Numbers, AreShortAndReadable) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(-1234567), "-1,234,567");
  EXPECT_EQ(WithCommas(123456), "123,456");
  EXPECT_EQ(ShortNumber(999), "999 ");
  EXPECT_EQ(ShortNumber(1234), "1.23 K");
  EXPECT_EQ(ShortNumber(56789), "56.8 K");
  EXPECT_EQ(ShortNumber(1.5e9), "1.50 G");
  EXPECT_EQ(ShortTime(89.2), "1:30");
  EXPECT_EQ(ShortTime(3723), "1:02:03");
}

TEST(ProgressLine, FitsTheTerminal) {
  const std::string line = ProgressLine({500, 1000, 4096}, absl::Seconds(2), 80);
  EXPECT_EQ(line, " 50% [===========>           ] 500/1,000 rows  250 rows/s  2.05 KB/s  0:02 left");
  for (int width : {40, 80, 200}) {
    EXPECT_LE(ProgressLine({123456789, 1'000'000'000, int64_t{1} << 40}, absl::Hours(1), width).size(),
              static_cast<size_t>(std::max(width, 80)));
  }
}

TEST(ProgressLine, SaysNothingOfWhatItDoesNotKnow) {
  EXPECT_EQ(ProgressLine({500, std::nullopt, 4096}, absl::Seconds(2), 80), "500 rows  250 rows/s  2.05 KB/s");
  EXPECT_THAT(ProgressLine({0, 1000, 0}, absl::Seconds(2), 0), StartsWith("  0% 0/1,000 rows"));
}

TEST(ProgressLine, CountsTheRateWithoutWhatWasThereBefore) {
  EXPECT_EQ(ProgressLine({600, 1000, 5096, 100, 1000}, absl::Seconds(2), 0),
            " 60% 600/1,000 rows  250 rows/s  2.05 KB/s  0:02 left");
}

TEST(Table, AlignsNamesLeftAndNumbersRight) {
  EXPECT_EQ(Table({{"name", "rows"}, {"a", "1"}, {"longer", "12345"}}),
            "name     rows\na           1\nlonger  12345\n");
}

}  // namespace
}  // namespace hookline::cli
