#include "server/dataset/sidecar.h"

#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

// A dataset of four 16-bit ids, and the files beside it.
class SidecarTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(::testing::TempDir(), "/", ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::ofstream(path_, std::ios::binary) << std::string(8, '\1');
    auto dataset = Dataset::Open("d", path_ + ":uint16");
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    dataset_ = *std::move(dataset);
  }

  const Sidecar* Read(const std::string& json) {
    std::ofstream(path_ + ".json") << json;
    sidecars_.Read(*dataset_, path_ + ":uint16");
    return sidecars_.Get("d");
  }

  std::string path_;
  std::unique_ptr<const Dataset> dataset_;
  Sidecars sidecars_;
};

TEST_F(SidecarTest, TellsWhatPackHasWritten) {
  const Sidecar* sidecar = Read(R"({"format": 1, "tokenizer": {"fingerprint": "ab"}, "packing": "saelens",
      "options": {"context_size": 2, "begin_batch_token": "bos"}, "documents": 3, "tokens": 4})");
  ASSERT_NE(sidecar, nullptr);
  EXPECT_EQ(sidecar->warning, "");
  EXPECT_EQ(sidecar->method, "saelens");
  EXPECT_EQ(sidecar->documents, 3);
  EXPECT_EQ(sidecar->options.at("context_size"), "2");
  EXPECT_EQ(sidecar->options.at("begin_batch_token"), "bos");
  EXPECT_EQ(sidecars_.TokenizerWarning("d", "m", "ab"), "");
  EXPECT_THAT(sidecars_.TokenizerWarning("d", "m", "cd"), HasSubstr("packed with the tokenizer ab"));
  EXPECT_EQ(sidecars_.TokenizerWarning("d", "m", ""), "");  // the model has none
}

TEST_F(SidecarTest, ADatasetWithoutOneHasNone) {
  sidecars_.Read(*dataset_, path_ + ":uint16");
  EXPECT_EQ(sidecars_.Get("d"), nullptr);
  EXPECT_EQ(sidecars_.TokenizerWarning("d", "m", "ab"), "");
}

TEST_F(SidecarTest, OfAnotherFileIsTold) {
  EXPECT_THAT(Read(R"({"format": 1, "tokens": 5})")->warning, HasSubstr("5 tokens, but it has 4"));
}

TEST_F(SidecarTest, WhateverItHoldsThereIsAWarning) {
  for (const std::string& json :
       {std::string("not JSON"), std::string("[1]"), std::string("{}"),
        R"({"format": 1, "options": {"a": )" + std::string(400'000, '[') + std::string(400'000, ']') + "}}",
        std::string(2 << 20, ' ')}) {
    const Sidecar* sidecar = Read(json);
    ASSERT_NE(sidecar, nullptr);
    EXPECT_THAT(sidecar->warning, HasSubstr("its sidecar ")) << json.substr(0, 50);
  }
}

}  // namespace
}  // namespace hookline
