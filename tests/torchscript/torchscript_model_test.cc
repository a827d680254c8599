// Tests the hook points of TorchScript modules: their names, their values, and which code runs for them.
#include <gmock/gmock.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "tests/torchscript/torchscript_testing.h"

namespace hookline {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAreArray;

constexpr double kTolerance = 1e-5;

class ReferenceTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ReferenceTest, EveryHookPointEqualsPythonsForwardHooks) {
  auto model = Load(Fixture(GetParam()));
  ASSERT_NE(model, nullptr);
  auto reference =
      ReadReferenceFile(absl::StrCat(HOOKLINE_FIXTURES, "/torchscript/", GetParam(), "/reference.safetensors"));
  int compared = 0;
  std::vector<std::string> expected_names;
  for (int j = 0; reference.count(absl::StrCat("tokens_", j)) != 0; ++j) {
    const at::Tensor ids = reference[absl::StrCat("tokens_", j)].to(at::kLong).unsqueeze(0);
    const std::string suffix = absl::StrCat("/", j);
    std::vector<std::string> names;
    for (const auto& [key, value] : reference) {
      if (!absl::EndsWith(key, suffix)) continue;
      const std::string name = key.substr(0, key.size() - suffix.size());
      if (GetParam() == "awkward" && (name == "pool" || name == "output[1]")) continue;  // no token axis
      names.push_back(name);
    }
    auto together = Values(*model, ids, names);
    ASSERT_TRUE(together.ok()) << together.status();
    for (const std::string& name : names) {
      auto alone = Values(*model, ids, {name});
      ASSERT_TRUE(alone.ok()) << alone.status();
      // `positions` has no batch dimension, and the reference has its rows as one sequence.
      const at::Tensor expected = reference[name + suffix].reshape({ids.numel(), -1});
      EXPECT_LE(RelativeError(together->at(name), expected), kTolerance) << name << suffix;
      EXPECT_LE(RelativeError(alone->at(name), expected), kTolerance) << name << suffix << " alone";
      ++compared;
    }
    expected_names = names;
  }
  EXPECT_GT(compared, 0);
  EXPECT_THAT(Names(*model), UnorderedElementsAreArray(expected_names));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ReferenceTest, ::testing::Values("scripted", "traced", "awkward", "frozen"),
                         [](const auto& info) { return info.param; });

TEST(TorchScriptModelTest, ABatchEqualsItsSequencesAlone) {
  for (const char* fixture : {"scripted", "traced", "awkward"}) {
    auto model = Load(Fixture(fixture));
    const std::vector<int64_t> first = {3, 1, 4, 1, 5, 9, 2}, second = {2, 7, 1, 8, 2, 8, 1};
    auto both = Values(*model, Ids({first, second}), Names(*model));
    auto one = Values(*model, Ids({first}), Names(*model));
    auto other = Values(*model, Ids({second}), Names(*model));
    ASSERT_TRUE(both.ok() && one.ok() && other.ok());
    for (const auto& [name, value] : *both) {
      EXPECT_EQ(value.size(0), 14) << name;
      EXPECT_LE(RelativeError(value.slice(0, 0, 7), one->at(name)), kTolerance) << fixture << " " << name;
      EXPECT_LE(RelativeError(value.slice(0, 7, 14), other->at(name)), kTolerance) << fixture << " " << name;
    }
  }
}

TEST(TorchScriptModelTest, InstancesThatShareAClassAreToldApart) {
  auto model = Load(Fixture("scripted"));
  auto values =
      Values(*model, Ids({{1, 2, 3, 4}}), {"blocks.0.mlp.0", "blocks.1.mlp.0", "blocks.0.ln1", "blocks.1.ln1"});
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_GT(RelativeError(values->at("blocks.0.mlp.0"), values->at("blocks.1.mlp.0")), 0.1);
  EXPECT_GT(RelativeError(values->at("blocks.0.ln1"), values->at("blocks.1.ln1")), 0.1);
}

TEST(TorchScriptModelTest, InfoTellsWhatWasFound) {
  auto model = Load(Fixture("scripted"));
  EXPECT_EQ(model->info().name, "model.pt");
  EXPECT_EQ(model->info().architecture, "torchscript");
  EXPECT_EQ(model->info().variant, "Decoder");
  EXPECT_EQ(model->info().layers, 2);
  EXPECT_EQ(model->info().width, 32);
  EXPECT_FALSE(model->info().mixes_lengths);
  EXPECT_EQ(model->info().fingerprint.size(), 32u);
  EXPECT_NE(model->info().fingerprint, Load(Fixture("traced"))->info().fingerprint);
  EXPECT_EQ(model->info().fingerprint, Load(Fixture("scripted"))->info().fingerprint);
  auto layer = [&](const char* name) { return model->hook_points()[model->hook_points().Find(name)].layer; };
  EXPECT_EQ(layer("embed"), -1);
  EXPECT_EQ(layer("blocks.0.ln1"), 0);
  EXPECT_EQ(layer("blocks.1.mlp.2"), 1);
  EXPECT_EQ(layer("norm"), 2);
  EXPECT_EQ(layer("output"), 2);
  auto width = [&](const char* name) { return model->hook_points()[model->hook_points().Find(name)].width; };
  EXPECT_EQ(width("blocks.0.attn.qkv"), 96);
  EXPECT_EQ(width("output"), 120);
}

TEST(TorchScriptModelTest, LimitsThatTheFileCannotTellAreWarnedOf) {
  auto unknown = Load(Fixture("scripted"));
  EXPECT_THAT(unknown->info().details, HasSubstr("context length unknown (--context-length)"));
  EXPECT_THAT(unknown->info().details, HasSubstr("vocabulary size unknown (--vocab-size)"));
  EXPECT_THAT(unknown->info().warning, HasSubstr("--vocab-size"));
  EXPECT_EQ(unknown->info().context_length, 2147483647);
  TorchScriptOptions options;
  options.context_length = 96;
  options.vocabulary_size = 120;
  auto known = Load(Fixture("scripted"), options);
  EXPECT_THAT(known->info().details, Not(HasSubstr("unknown")));
  EXPECT_EQ(known->info().warning, "");
  EXPECT_EQ(known->info().context_length, 96);
  EXPECT_EQ(known->info().vocabulary_size, 120);
}

TEST(TorchScriptModelTest, AnExceptionOfTheModuleIsTheRequestsFaultOnlyWhereLimitsAreUnknown) {
  const at::Tensor out_of_range = Ids({{1, 2, 4000}});
  auto unknown = Load(Fixture("scripted"));
  auto values = Values(*unknown, out_of_range, {"blocks.0"});
  EXPECT_EQ(values.status().code(), absl::StatusCode::kInvalidArgument) << values.status();
  EXPECT_THAT(std::string(values.status().message()), HasSubstr("(1, 3): "));
  EXPECT_THAT(std::string(values.status().message()), HasSubstr("index out of range"));
  EXPECT_TRUE(Values(*unknown, Ids({{1, 2}}), {"blocks.0"}).ok()) << "the model stays usable";

  TorchScriptOptions options;
  options.context_length = 96;
  options.vocabulary_size = 8000;  // more than the model has
  auto known = Load(Fixture("scripted"), options);
  EXPECT_EQ(Values(*known, out_of_range, {"blocks.0"}).status().code(), absl::StatusCode::kInternal);
}

TEST(TorchScriptModelTest, AnUnknownHookPointIsRefusedWithTheReason) {
  auto model = Load(Fixture("awkward"));
  EXPECT_THAT(Refusal(*model, "pool"),
              HasSubstr("'pool' cannot be captured: it has no token axis; for 2 sequences of 5 "
                        "tokens its shape is (2, 32, 1)"));
  EXPECT_THAT(Refusal(*model, "output[1]"), HasSubstr("(2, 32, 1)"));
  EXPECT_THAT(Refusal(*model, "first"), HasSubstr("'first' returns a tuple; name an element, [0] to [1]"));
  EXPECT_THAT(Refusal(*model, "output"), HasSubstr("such as output[0]"));
  EXPECT_THAT(Refusal(*model, "norm"), HasSubstr("'norm' is called 2 times; name a call, norm@0 to norm@1"));
  EXPECT_THAT(Refusal(*model, "unused"), HasSubstr("'unused' never runs in forward"));
  EXPECT_THAT(Refusal(*model, "frist[0]"), HasSubstr("nearest: first[0]"));
  EXPECT_THAT(Names(*Load(Fixture("frozen"))), ElementsAre("output"));
}

TEST(TorchScriptModelTest, OtherTypesStayNearFloat32) {
  TorchScriptOptions options;
  options.dtype = Dtype::kBFloat16;
  for (const char* fixture : {"scripted", "traced", "awkward"}) {
    auto model = Load(Fixture(fixture), options);
    ASSERT_NE(model, nullptr);
    auto exact = Load(Fixture(fixture));
    auto values = Values(*model, Ids({{1, 2, 3, 4, 5}}), Names(*model));
    auto expected = Values(*exact, Ids({{1, 2, 3, 4, 5}}), Names(*exact));
    ASSERT_TRUE(values.ok()) << values.status();
    for (const auto& [name, value] : *values) {
      EXPECT_EQ(value.scalar_type(), at::kBFloat16) << name;
      EXPECT_LE(RelativeError(value.to(at::kFloat), expected->at(name)), 5e-2) << fixture << " " << name;
    }
  }
}

// Returns a module with the methods in `code` and the children `a` and `b`, which add a parameter of width 4. It embeds
// ids in width 4.
torch::jit::Module WithChildren(const std::string& code, const std::string& child_code) {
  torch::jit::Module module("Whole");
  module.register_attribute("training", c10::BoolType::get(), true);
  module.register_parameter("table", at::arange(40, at::TensorOptions(at::kFloat)).reshape({10, 4}), false);
  for (const char* name : {"a", "b"}) {
    torch::jit::Module child(absl::StrCat("Child_", name));
    child.register_parameter("bias", at::full({4}, name[0] == 'a' ? 1.0 : 100.0), false);
    child.define(child_code);
    module.register_module(name, child);
  }
  module.define(code);
  return module;
}

std::unique_ptr<Model> SaveAndLoad(const torch::jit::Module& module, TorchScriptOptions options = {}) {
  TemporaryFolder folder;
  module.save(folder.File("module.pt"));
  return Load(folder.File("module.pt"), options);
}

constexpr char kAdd[] = "def forward(self, x):\n  return x + self.bias\n";

TEST(TorchScriptModelTest, WhatComesAfterTheDeepestHookPointIsNotExecuted) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids):
  x = self.a.forward(self.table[ids])
  assert int(ids.max()) <= 5, "deep"
  return self.b.forward(x)
)",
                                        kAdd));
  ASSERT_NE(model, nullptr);
  const at::Tensor ids = Ids({{1, 9}});
  auto shallow = Values(*model, ids, {"a"});
  ASSERT_TRUE(shallow.ok()) << shallow.status();
  EXPECT_EQ(shallow->at("a")[1][0].item<float>(), 37.0f);
  EXPECT_EQ(model->blocks_executed(), 1);
  auto deep = Values(*model, ids, {"b"});
  EXPECT_THAT(std::string(deep.status().message()), HasSubstr("deep"));
  EXPECT_TRUE(Values(*model, Ids({{1, 2}}), {"a", "b"}).ok());
  EXPECT_EQ(model->blocks_executed(), 3);
}

TEST(TorchScriptModelTest, BlocksAfterTheDeepestHookPointAreNotCounted) {
  auto model = Load(Fixture("scripted"));
  auto calls = [&](const char* name) {
    const int64_t before = model->blocks_executed();
    EXPECT_TRUE(Values(*model, Ids({{1, 2, 3}}), {name}).ok());
    return model->blocks_executed() - before;
  };
  EXPECT_EQ(calls("embed"), 1);
  EXPECT_EQ(calls("blocks.0"), 2 + 10);
  EXPECT_EQ(calls("blocks.1"), 2 + 20);
  EXPECT_EQ(calls("output"), 2 + 20 + 3);
}

TEST(TorchScriptModelTest, AValueThatIsOverwrittenLaterIsTheOneAtTheCall) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids):
  x = self.a.forward(self.table[ids])
  x.mul_(0.0)
  return self.b.forward(x)
)",
                                        "def forward(self, x):\n  y = x + self.bias\n  y.add_(1000.0)\n  return y\n"));
  ASSERT_NE(model, nullptr);
  for (const std::vector<std::string>& names : {std::vector<std::string>{"a"}, {"a", "b"}}) {
    auto values = Values(*model, Ids({{1}}), names);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(values->at("a")[0][0].item<float>(), 1005.0f);
    if (names.size() == 2) {
      EXPECT_EQ(values->at("b")[0][0].item<float>(), 1100.0f);
    }
  }
}

TEST(TorchScriptModelTest, ConditionsThatTheFileDecidesAreSettledAndOthersRefused) {
  auto module = WithChildren(R"(
def forward(self, ids, mask: Optional[Tensor]=None):
  x = self.table[ids]
  if mask is not None:
    x = self.b.forward(x) * mask
  if self.training:
    x = self.b.forward(x)
  x = self.a.forward(x)
  if int(ids.max()) > 5:
    x = self.b.forward(x)
  return x
)",
                             kAdd);
  auto model = SaveAndLoad(module);
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(Names(*model), ElementsAre("a", "output"));
  EXPECT_THAT(Refusal(*model, "b"), HasSubstr("'b' is called under a condition"));
  auto values = Values(*model, Ids({{1, 9}}), {"a", "output"});
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(values->at("output")[0][0].item<float>(), 4.0f + 1.0f + 100.0f);
}

TEST(TorchScriptModelTest, OutputsOfTheSameRowsForEverySequenceAreGivenToEach) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids):
  return self.table[ids] + self.a.forward(self.table[:ids.size(1)]) + self.b.forward(self.table[:ids.size(1)].unsqueeze(0))
)",
                                        kAdd));
  ASSERT_NE(model, nullptr);
  auto values = Values(*model, Ids({{1, 2}, {3, 4}}), {"a", "b"});
  ASSERT_TRUE(values.ok()) << values.status();
  for (const char* name : {"a", "b"}) {
    ASSERT_EQ(values->at(name).sizes(), (std::vector<int64_t>{4, 4}));
    EXPECT_TRUE(values->at(name).slice(0, 0, 2).equal(values->at(name).slice(0, 2, 4)));
  }
}

TEST(TorchScriptModelTest, PositionsMayComeBeforeTheBatch) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids):
  x = self.a.forward(self.table[ids].transpose(0, 1)).transpose(0, 1)
  return self.b.forward(x)
)",
                                        kAdd));
  ASSERT_NE(model, nullptr);
  auto values = Values(*model, Ids({{1, 2}, {3, 4}, {5, 6}}), {"a", "b"});
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_TRUE((values->at("a") + 100.0).equal(values->at("b")));
}

TEST(TorchScriptModelTest, AWidthThatDependsOnTheLengthIsRefused) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids):
  x = self.a.forward(self.table[ids])
  return self.b.forward(x).sum() + torch.matmul(x, x.transpose(1, 2))
)",
                                        kAdd));
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(Refusal(*model, "output"),
              HasSubstr("rows whose width depends on the input; for 3 sequences of 7 tokens its shape is (3, 7, 7)"));
}

TEST(TorchScriptModelTest, AnAttentionMaskIsGivenWhereOneIsTaken) {
  auto model = SaveAndLoad(WithChildren(R"(
def forward(self, ids, attention_mask):
  return self.b.forward(self.a.forward(self.table[ids]) * attention_mask.unsqueeze(-1))
)",
                                        kAdd));
  ASSERT_NE(model, nullptr);
  auto values = Values(*model, Ids({{1, 2}}), {"b"});
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(values->at("b")[0][0].item<float>(), 105.0f);
}

TEST(TorchScriptModelTest, MoreSetsOfHookPointsThanAreKeptGiveTheSameValues) {
  auto model = Load(Fixture("scripted"));
  const std::vector<std::string> names = Names(*model);
  auto all = Values(*model, Ids({{5, 6, 7}}), names);
  ASSERT_TRUE(all.ok());
  for (size_t i = 0; i < names.size(); ++i) {
    for (size_t j = 0; j < std::min<size_t>(i, 6); ++j) {
      auto pair = Values(*model, Ids({{5, 6, 7}}), {names[i], names[j]});
      ASSERT_TRUE(pair.ok()) << pair.status();
      ASSERT_EQ(pair->size(), 2u);
      for (const auto& [name, value] : *pair) EXPECT_LE(RelativeError(value, all->at(name)), 1e-6) << name;
    }
  }
}

}  // namespace
}  // namespace hookline
