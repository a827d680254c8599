// Tests TorchScript files that are refused, and their errors.
#include <gmock/gmock.h>

#include <random>

#include "server/model/load.h"
#include "tests/torchscript/torchscript_testing.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

// Expects that `options` are refused with `code` and a message that has the file's name and `text`.
void ExpectRefused(TorchScriptOptions options, absl::StatusCode code, const std::string& text) {
  auto model = LoadTorchScript(options);
  ASSERT_FALSE(model.ok()) << text;
  EXPECT_EQ(model.status().code(), code) << model.status();
  const std::string message(model.status().message());
  EXPECT_THAT(message, HasSubstr(options.path));
  EXPECT_THAT(message, HasSubstr(text));
  EXPECT_LT(message.size(), 2000u);
}

void ExpectFileRefused(const std::string& path, const std::string& text) {
  TorchScriptOptions options;
  options.path = path;
  ExpectRefused(options, absl::StatusCode::kFailedPrecondition, text);
}

void ExpectCodeRefused(const std::string& code, const std::string& text) {
  TemporaryFolder folder;
  torch::jit::Module module("Whole");
  module.register_parameter("table", at::ones({10, 4}), false);
  module.register_attribute("cache", c10::TensorType::get(), at::zeros({4}));
  module.register_attribute("past", c10::ListType::create(c10::TensorType::get()), c10::List<at::Tensor>());
  module.define(code);
  module.save(folder.File("module.pt"));
  ExpectFileRefused(folder.File("module.pt"), text);
}

TEST(TorchScriptFileTest, AMissingFileIsNotFound) {
  TorchScriptOptions options;
  options.path = "/nowhere/model.pt";
  ExpectRefused(options, absl::StatusCode::kNotFound, "No such file");
}

TEST(TorchScriptFileTest, AFileThatIsNotTorchScriptIsRefused) {
  TemporaryFolder folder;
  WriteFile(folder.File("text.pt"), "not a zip archive at all");
  ExpectFileRefused(folder.File("text.pt"), "not a TorchScript archive");
  WriteFile(folder.File("empty.pt"), "");
  ExpectFileRefused(folder.File("empty.pt"), "the file is empty");
  ExpectFileRefused(absl::StrCat(HOOKLINE_FIXTURES, "/torchscript"), "not a regular file");
  ExpectFileRefused(absl::StrCat(HOOKLINE_FIXTURES, "/nanochat/A-mha/model_000123.pt"), "holds no TorchScript code");
}

TEST(TorchScriptFileTest, ATruncatedFileIsRefusedAtEveryLength) {
  TemporaryFolder folder;
  const std::string whole = ReadFile(Fixture("awkward"));
  for (size_t parts = 1; parts < 12; ++parts) {
    WriteFile(folder.File("cut.pt"), whole.substr(0, whole.size() * parts / 12));
    ExpectFileRefused(folder.File("cut.pt"), "");
  }
  WriteFile(folder.File("cut.pt"), whole.substr(0, whole.size() - 1));
  ExpectFileRefused(folder.File("cut.pt"), "");
}

TEST(TorchScriptFileTest, AFlippedFileIsRefusedOrMeansTheSame) {
  TemporaryFolder folder;
  const std::string whole = ReadFile(Fixture("awkward"));
  const at::Tensor ids = Ids({{1, 2, 3}});
  const at::Tensor expected = Values(*Load(Fixture("awkward")), ids, {"output[0]"})->at("output[0]");
  std::mt19937 random(1);
  int refused = 0;
  constexpr int kFlips = 300;
  for (int i = 0; i < kFlips; ++i) {
    std::string flipped = whole;
    flipped[random() % flipped.size()] ^= static_cast<char>(1 << (random() % 8));
    WriteFile(folder.File("flipped.pt"), flipped);
    TorchScriptOptions options;
    options.path = folder.File("flipped.pt");
    auto model = LoadTorchScript(options);
    if (model.ok()) {  // the flip hit padding, a date, or a name that nothing uses
      auto values = Values(**model, ids, {"output[0]"});
      ASSERT_TRUE(values.ok()) << values.status();
      EXPECT_TRUE(values->at("output[0]").equal(expected));
    } else {
      ++refused;
      EXPECT_THAT(std::string(model.status().message()), HasSubstr(options.path));
    }
  }
  EXPECT_GT(refused, kFlips / 2);
}

TEST(TorchScriptFileTest, ADamagedRecordIsNamed) {
  TemporaryFolder folder;
  std::string bytes = ReadFile(Fixture("awkward"));
  const size_t pickle = bytes.find("data.pkl");
  ASSERT_NE(pickle, std::string::npos);
  bytes[pickle + 200] ^= 1;
  WriteFile(folder.File("flipped.pt"), bytes);
  ExpectFileRefused(folder.File("flipped.pt"), "record 'data.pkl' is damaged: its CRC-32 does not match");
}

TEST(TorchScriptFileTest, StateThatOutlivesARequestIsRefused) {
  ExpectCodeRefused("def forward(self, ids):\n  self.cache = self.table[0]\n  return self.table[ids]\n",
                    "assigns the attribute 'cache'");
  ExpectCodeRefused("def forward(self, ids):\n  self.cache.add_(1.0)\n  return self.table[ids] + self.cache\n",
                    "writes to its buffers");
  ExpectCodeRefused("def forward(self, ids):\n  self.past.append(self.table[0])\n  return self.table[ids]\n",
                    "assigns the attribute 'past'");
}

TEST(TorchScriptFileTest, InputsThatNobodyGivesAreNamed) {
  ExpectCodeRefused("def forward(self, ids, scale: float):\n  return self.table[ids] * scale\n",
                    "takes 'scale' without a default");
  ExpectCodeRefused("def forward(self, n: int):\n  return self.table[n]\n", "must take a tensor of token ids");
  ExpectCodeRefused("def other(self, ids):\n  return ids\n", "no method 'forward'");
}

TEST(TorchScriptFileTest, AModuleThatFailsOnZerosIsRefusedWithItsReason) {
  ExpectCodeRefused("def forward(self, ids):\n  assert int(ids.max()) > 3, 'wants more'\n  return self.table[ids]\n",
                    "does not run on token ids of shape (2, 5) as float32 on cpu: ");
  ExpectCodeRefused("def forward(self, ids):\n  return self.table[ids].sum()\n", "none of its modules returns");
}

TEST(TorchScriptFileTest, LoadModelTakesAFileForTorchScript) {
  ModelOptions options;
  options.path = Fixture("traced");
  options.device = "cpu";
  options.context_length = 96;
  options.vocabulary_size = 120;
  auto model = LoadModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->info().architecture, "torchscript");
  EXPECT_EQ((*model)->info().name, "model");
  EXPECT_EQ((*model)->info().device, "cpu");
  EXPECT_EQ((*model)->info().dtype, Dtype::kFloat32);
  EXPECT_EQ((*model)->info().context_length, 96);
  EXPECT_EQ((*model)->info().vocabulary_size, 120);
  options.name = "mine";
  options.dtype = "bfloat16";
  model = LoadModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->info().name, "mine");
  EXPECT_EQ((*model)->info().dtype, Dtype::kBFloat16);
}

TEST(TorchScriptFileTest, OptionsOutOfRangeAreNamed) {
  TorchScriptOptions options;
  options.path = Fixture("scripted");
  options.context_length = -5;
  auto model = LoadTorchScript(options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("context_length is -5"));
}

TEST(TorchScriptFileTest, CudaNeedsTheLimitsThatTheFileCannotTell) {
  TorchScriptOptions options;
  options.path = Fixture("scripted");
  options.device = "cuda:0";
  options.context_length = 96;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument, "needs --context-length and --vocab-size");
}

TEST(TorchScriptFileTest, AFrozenFileIsRefusedForAnotherDeviceOrType) {
  TorchScriptOptions options;
  options.path = Fixture("frozen");
  options.context_length = 96;
  options.vocabulary_size = 120;
  options.device = "cuda:0";
  ExpectRefused(options, absl::StatusCode::kFailedPrecondition, "it is frozen");
  options.device = "cpu";
  options.dtype = Dtype::kBFloat16;
  ExpectRefused(options, absl::StatusCode::kFailedPrecondition, "cannot become bfloat16");
}

}  // namespace
}  // namespace hookline
