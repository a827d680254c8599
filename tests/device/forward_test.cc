// The forward passes of every family on an accelerator.
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
#include "tests/device/load_fixture.h"
#include "tests/model/parity.h"
#include "tests/support/fake_device.h"

namespace hookline {
namespace {

using ::testing::IsEmpty;

// The fake device does not compute what chooses experts.
bool HasExperts(const std::string& fixture) {
  const std::vector<std::string> with = {"deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_5_moe", "qwen3_moe"};
  return std::find(with.begin(), with.end(), fixture) != with.end();
}

std::vector<std::string> Fixtures() {
  std::vector<std::string> names;
  for (const std::string kind : {"families", "nanochat"}) {
    DIR* const directory = opendir((std::string(HOOKLINE_FIXTURES) + "/" + kind).c_str());
    while (const dirent* entry = readdir(directory)) {
      if (entry->d_name[0] == '.' || absl::EndsWith(entry->d_name, ".md")) continue;
      if (!HasExperts(entry->d_name)) names.push_back(kind + "/" + entry->d_name);
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

  // Two sequences, the second one shorter and padded.
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
    // Nothing is promised of padding.
    const int64_t rows = 2 * ids.size(1) - 3;
    const at::Tensor a = got[i].narrow(0, 0, rows), b = expected[i].narrow(0, 0, rows);
    EXPECT_LE((a - b).norm().item<double>(), 1e-5 * b.norm().item<double>()) << on_cpu->hook_points()[all[i]].name;
  }
  const at::Tensor ids_there = ids.to(c10::Device(FakeDevice::Name(1)));
  FakeDevice::Reset();
  ASSERT_TRUE(on_device->Forward(ids_there, Lengths(ids), all, [](int, const at::Tensor&) {}).ok());
  EXPECT_EQ(FakeDevice::counters().blocking_copies, 0);
  EXPECT_EQ(FakeDevice::counters().uploads, 0);
  EXPECT_EQ(FakeDevice::counters().host_waits, 0);
  EXPECT_EQ(FakeDevice::Switches(0), 0);
  EXPECT_THAT(FakeDevice::Races(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(, DeviceForwardTest, ::testing::ValuesIn(Fixtures()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           return absl::StrReplaceAll(info.param, {{"/", "_"}, {"-", "_"}});
                         });

}  // namespace
}  // namespace hookline
