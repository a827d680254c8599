// Tests the forward passes of every family on an accelerator.
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "server/model/attention/attend.h"
#include "server/model/torch_compat.h"
#include "tests/model/load_fixture.h"
#include "tests/model/parity.h"
#include "tests/support/fake_device.h"

namespace hookline {
namespace {

using ::testing::IsEmpty;

std::vector<std::string> Fixtures() {
  std::vector<std::string> names;
  for (const std::string kind : {"families", "nanochat"}) {
    DIR* const directory = opendir((std::string(HOOKLINE_FIXTURES) + "/" + kind).c_str());
    while (const dirent* entry = readdir(directory)) {
      if (entry->d_name[0] == '.' || absl::EndsWith(entry->d_name, ".md")) continue;
      names.push_back(kind + "/" + entry->d_name);
    }
    closedir(directory);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class DeviceForwardTest : public ::testing::TestWithParam<std::string> {
 protected:
  DeviceForwardTest() { FakeDevice::Reset(); }

  static constexpr int64_t kPositions = 70;  // more than a block of queries

  // Returns two sequences, of which the second one is shorter and padded.
  static at::Tensor Ids(const Model& model) {
    const int64_t positions = std::min(kPositions, model.info().context_length);
    at::Tensor ids = at::arange(2 * positions, at::kLong).mul_(31).remainder_(model.info().vocabulary_size);
    return ids.view({2, positions});
  }
  static std::vector<int64_t> Lengths(const at::Tensor& ids) { return {ids.size(1), ids.size(1) - 3}; }

  static std::vector<int> All(const Model& model) {
    std::vector<int> all;
    for (int i = 0; i < model.hook_points().size(); ++i) all.push_back(i);
    return all;
  }

  // Returns how many launches a pass takes that ends at `hook_point` and is not the first one.
  static int64_t LaunchesOf(Model& model, const at::Tensor& ids, int hook_point) {
    const auto run = [&] { EXPECT_TRUE(model.Forward(ids, {}, {hook_point}, [](int, const at::Tensor&) {}).ok()); };
    run();
    FakeDevice::Reset();
    run();
    return FakeDevice::counters().launches;
  }
};

TEST_P(DeviceForwardTest, EveryHookPointEqualsTheCpusWithoutAWait) {
  const auto on_cpu = LoadFixture(GetParam(), "cpu");
  const auto on_device = LoadFixture(GetParam(), FakeDevice::Name(1));
  ASSERT_TRUE(on_cpu != nullptr && on_device != nullptr);
  const c10::DeviceGuard guard(c10::Device(FakeDevice::Name(1)));
  const at::Tensor ids = Ids(*on_cpu);
  const std::vector<int> all = All(*on_cpu);
  const std::vector<at::Tensor> expected = RunModel(*on_cpu, ids, all, Lengths(ids));
  const std::vector<at::Tensor> got = RunModel(*on_device, ids, all, Lengths(ids));
  for (size_t i = 0; i < all.size(); ++i) {
    // The rows of padding are not specified.
    const int64_t rows = 2 * ids.size(1) - 3;
    const at::Tensor a = got[i].narrow(0, 0, rows), b = expected[i].narrow(0, 0, rows);
    EXPECT_LE((a - b).norm().item<double>(), 1e-5 * b.norm().item<double>()) << on_cpu->hook_points()[all[i]].name;
  }
  const at::Tensor ids_there = ids.to(c10::Device(FakeDevice::Name(1)));
  FakeDevice::Reset();
  ASSERT_TRUE(on_device->Forward(ids_there, Lengths(ids), all, [](int, const at::Tensor&) {}).ok());
  // A block with experts waits once, to learn how many rows each expert gets.
  const bool has_experts = absl::StrContains(on_device->info().details, "experts");
  EXPECT_LE(FakeDevice::counters().blocking_copies, has_experts ? on_device->info().layers : 0);
  EXPECT_EQ(FakeDevice::counters().uploads, 0);
  EXPECT_EQ(FakeDevice::counters().host_waits, 0);
  EXPECT_EQ(FakeDevice::Switches(0), 0);
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

// The references are those of the tests on the CPU.
TEST_P(DeviceForwardTest, EveryHookPointEqualsTheReferenceInFloat32) {
  const auto model = LoadFixture(GetParam(), FakeDevice::Name());
  ASSERT_NE(model, nullptr);
  const Reference reference =
      ReadReference(std::string(HOOKLINE_FIXTURES) + "/" + GetParam() + "/reference.safetensors");
  for (const Difference& difference : CompareWithReference(*model, reference)) {
    EXPECT_LE(difference.relative, 1e-5) << difference.what;
  }
}

// Returns how many launches attention takes by itself: 1 with a fused kernel, which LibTorch has since 2.5.
int64_t LaunchesOfAttention(const ModelInfo& info, at::ScalarType dtype) {
  if (kHasFusedAttention) return 1;
  const at::TensorOptions options = at::TensorOptions(c10::Device(FakeDevice::Name())).dtype(dtype);
  const at::Tensor q = at::zeros({2, 16, info.heads, 16}, options);
  const at::Tensor k = at::zeros({2, 16, info.key_value_heads, 16}, options);
  CausalMasks masks(q.device());
  Attend(q, k, k, {}, masks);
  FakeDevice::Reset();
  Attend(q, k, k, {}, masks);
  return FakeDevice::counters().launches;
}

// The most launches of one block if nothing inside it is tapped and attention counts as one. Before norms were fused,
// products joined and rotations written once, the counts were 14 and 20 (GPT-2), 36 and 38 (Llama), 50 and 54 (Qwen 3),
// 64 and 76 (Gemma 3).
struct Launches {
  const char* fixture;
  // These hold where RMS norms are one kernel. No kernel for float32 takes grouped keys and values, so these are
  // repeated.
  int64_t float32, bfloat16;
  int64_t composed_float32, composed_bfloat16;  // with composed RMS norms, as before LibTorch 2.9
};
constexpr Launches kMostLaunches[] = {
    {"families/gpt2", 10, 10, 10, 10},
    {"families/opt", 10, 10, 10, 10},
    {"families/gpt_neox_sequential", 21, 21, 21, 21},
    {"families/llama_gqa", 17, 15, 27, 29},
    {"families/mistral", 17, 15, 27, 29},
    {"families/qwen3", 24, 22, 46, 50},
    {"families/gemma3", 24, 30, 60, 72},
    {"nanochat/A-gqa", 41, 45, 41, 45},
    {"nanochat/I-gqa", 53, 56, 53, 56},
};

TEST_P(DeviceForwardTest, LaunchesPerBlock) {
  c10::InferenceMode inference;
  for (const std::string dtype : {"float32", "bfloat16"}) {
    const auto model = LoadFixture(GetParam(), FakeDevice::Name(), dtype);
    ASSERT_NE(model, nullptr);
    const int layers = model->info().layers;
    const at::Tensor ids = Ids(*model).narrow(1, 0, 16).contiguous().to(c10::Device(FakeDevice::Name()));
    const auto post = [&](int layer) {
      return model->hook_points().Find("blocks." + std::to_string(layer) + ".hook_resid_post");
    };
    const int64_t whole = LaunchesOf(*model, ids, post(layers - 1));
    const int64_t attention = LaunchesOfAttention(model->info(), dtype == "float32" ? at::kFloat : at::kBFloat16);
    const int64_t launches = whole - LaunchesOf(*model, ids, post(layers - 2)) - attention + 1;
    RecordProperty("launches_" + dtype, static_cast<int>(launches));
    for (const Launches& most : kMostLaunches) {
      if (most.fixture != GetParam()) continue;
      EXPECT_LE(launches, dtype == "float32" ? (kHasFusedRmsNorm ? most.float32 : most.composed_float32)
                                             : (kHasFusedRmsNorm ? most.bfloat16 : most.composed_bfloat16))
          << dtype;
    }
  }
}

// No fused kernel supports a soft cap, and each block of queries takes a dozen launches.
TEST(DeviceAttentionTest, ASoftCapTakesNoMoreLaunchesForFiveHundredPositionsThanForSixty) {
  c10::InferenceMode inference;
  AttendOptions options;
  options.soft_cap = 50;
  const auto launches = [&](int64_t positions) {
    const at::Tensor q = at::zeros({1, positions, 2, 16}, at::TensorOptions(c10::Device(FakeDevice::Name())));
    CausalMasks masks(q.device());
    Attend(q, q, q, options, masks);
    FakeDevice::Reset();
    Attend(q, q, q, options, masks);
    return FakeDevice::counters().launches;
  };
  EXPECT_EQ(launches(500), launches(60));
}

// Longer sequences need longer tables; each upload of a table is a wait.
TEST(DeviceTablesTest, RotaryTablesGrowByPowersOfTwo) {
  const auto model = LoadFixture("families/llama_gqa", FakeDevice::Name());
  ASSERT_NE(model, nullptr);
  const c10::Device device(FakeDevice::Name());
  const auto run = [&](int64_t positions) {
    const at::Tensor ids = at::zeros({1, positions}, at::TensorOptions(device).dtype(at::kLong));
    EXPECT_TRUE(model->Forward(ids, {}, {model->hook_points().size() - 1}, [](int, const at::Tensor&) {}).ok());
  };
  FakeDevice::Reset();
  for (int64_t positions = 2; positions <= 64; ++positions) run(positions);
  EXPECT_EQ(FakeDevice::counters().uploads, 2 * 6) << "cos and sin, of 2, 4, 8, 16, 32 and 64 positions";
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(, DeviceForwardTest, ::testing::ValuesIn(Fixtures()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           return absl::StrReplaceAll(info.param, {{"/", "_"}, {"-", "_"}});
                         });

}  // namespace
}  // namespace hookline
