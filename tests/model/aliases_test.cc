// Names of transformers and TransformerLens must mean the tensors that these packages compute under them.
// fixtures/aliases/make_aliases.py has recorded them from both.
#include "server/model/aliases.h"

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/model/load.h"

namespace hookline {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

nlohmann::json Expected() {
  std::ifstream file(std::string(HOOKLINE_FIXTURES) + "/aliases/expected.json");
  return nlohmann::json::parse(file);
}

std::vector<std::string> Recorded() {
  std::vector<std::string> names;
  const nlohmann::json expected = Expected();
  for (const auto& [name, table] : expected.items()) names.push_back(name);
  return names;
}

// Returns the ways to write a module's input or output: as it is, relative to the base model, and an output
// without `.output`.
std::vector<std::string> Spellings(const std::string& name, const std::string& base) {
  std::vector<std::string> spellings = {name};
  if (absl::StartsWith(name, base)) spellings.push_back(name.substr(base.size()));
  for (size_t i = 0, count = spellings.size(); i < count; ++i) {
    const std::string output = ".output";
    if (!absl::EndsWith(spellings[i], output)) continue;
    spellings.push_back(spellings[i].substr(0, spellings[i].size() - output.size()));
  }
  return spellings;
}

class AliasesTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ModelOptions options;
    options.path = absl::StrCat(HOOKLINE_FIXTURES, "/families/", GetParam());
    options.device = "cpu";
    options.dtype = "float32";
    auto model = LoadModel(options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    table_ = Expected()[GetParam()];
  }

  // Checks the meaning of `name`. `same`: the hook points that hold the tensor of that name; empty if Hookline
  // has none.
  void Check(const std::string& name, const std::vector<std::string>& same) {
    SCOPED_TRACE(name);
    const HookPoints& points = model_->hook_points();
    if (const int own = points.Find(name); own >= 0 && points[own].name == name) return;  // a name of Hookline's own
    const auto resolved = points.Resolve({name}, 10);
    if (resolved.ok()) {
      EXPECT_THAT(same, Contains(points[resolved->front().index].name));
      ++accepted_;
      return;
    }
    const std::string message(resolved.status().message());
    EXPECT_THAT(message, Not(HasSubstr("is not a hook point"))) << "no reason is told";
    const bool names_one = std::any_of(same.begin(), same.end(),
                                       [&](const std::string& point) { return absl::StrContains(message, point); });
    EXPECT_TRUE(same.empty() || names_one) << message;
  }

  std::unique_ptr<Model> model_;
  nlohmann::json table_;
  int accepted_ = 0;
};

TEST_P(AliasesTest, PathsOfTransformersMeanWhatTheirModulesReadAndReturn) {
  for (const auto& [name, same] : table_["transformers"].items()) {
    for (const std::string& spelling : Spellings(name, table_["base"].get<std::string>())) {
      Check(spelling, same.get<std::vector<std::string>>());
    }
  }
  EXPECT_GT(accepted_, 40);
}

TEST_P(AliasesTest, NamesOfTransformerLensMeanWhatItsBridgeSees) {
  if (!table_.contains("transformer_lens")) return;  // the bridge does not know the family
  for (const auto& [name, same] : table_["transformer_lens"].items()) {
    Check(name, same.get<std::vector<std::string>>());
  }
  EXPECT_GT(accepted_, 15);
}

INSTANTIATE_TEST_SUITE_P(, AliasesTest, ::testing::ValuesIn(Recorded()),
                         [](const ::testing::TestParamInfo<std::string>& info) { return info.param; });

}  // namespace
}  // namespace hookline
