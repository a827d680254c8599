#include "server/dataset/sidecar.h"

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

// A dataset of 100 tokens, and what is said of it with `sidecar` beside its file.
class SidecarTest : public ::testing::Test {
 protected:
  SidecarTest() {
    std::ofstream(path_, std::ios::binary) << std::string(200, '\1');
    auto dataset = Dataset::Open("pile", source_);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    dataset_ = *std::move(dataset);
  }

  Sidecar With(const std::string& sidecar) {
    std::ofstream(path_ + ".json", std::ios::binary) << sidecar;
    Sidecars sidecars;
    sidecars.Read(*dataset_, source_);
    return *sidecars.Get("pile");
  }

  const std::string path_ = ::testing::TempDir() + "/sidecar_test.bin";
  const std::string source_ = path_ + ":uint16";
  std::unique_ptr<const Dataset> dataset_;
};

TEST_F(SidecarTest, SaysHowTheDatasetWasPacked) {
  const Sidecar sidecar = With(R"({"format": 1, "tokenizer": {"fingerprint": "ab"}, "packing": "plain", "documents": 7,
                                   "tokens": 100, "options": {"separator_token": "eos", "context_size": 4}})");
  EXPECT_EQ(sidecar.warning, "");
  EXPECT_EQ(sidecar.tokenizer_fingerprint, "ab");
  EXPECT_EQ(sidecar.method, "plain");
  EXPECT_EQ(sidecar.documents, 7);
  EXPECT_THAT(sidecar.options, ElementsAre(Pair("context_size", "4"), Pair("separator_token", "eos")));
}

TEST_F(SidecarTest, WarnsOfWhatIsNotTheDatasets) {
  EXPECT_THAT(With(R"({"format": 1, "tokens": 99})").warning, HasSubstr("99 tokens, but it has 100"));
  EXPECT_THAT(With(R"({"format": 1, "tokens": 18446744073709551615})").warning, HasSubstr("but it has 100"));
  EXPECT_THAT(With(R"({"format": 2})").warning, HasSubstr("format 1"));
  EXPECT_THAT(With("no JSON").warning, HasSubstr("is not a JSON object"));
}

TEST_F(SidecarTest, HoweverItNestsTheProcessGoesOn) {
  const std::string deep = std::string(400'000, '[') + std::string(400'000, ']');
  EXPECT_THAT(With(absl::StrCat(R"({"format": 1, "options": {"a": )", deep, "}}")).warning,
              HasSubstr("nests too deeply"));
}

}  // namespace
}  // namespace hookline
