// Engines whose model lies on the fake accelerator, and reference engines on the CPU.
#ifndef HOOKLINE_TESTS_DEVICE_DEVICE_FIXTURE_H_
#define HOOKLINE_TESTS_DEVICE_DEVICE_FIXTURE_H_

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "server/engine/engine.h"
#include "tests/engine/collector.h"
#include "tests/model/load_fixture.h"
#include "tests/support/fake_device.h"
#include "tests/support/tokens.h"

namespace hookline {

class DeviceEngineTest : public ::testing::Test {
 protected:
  DeviceEngineTest() {
    options_.slab_bytes = 4096;
    options_.slab_count = 256;
    options_.window_slabs = 8;
    options_.max_batch_tokens = 128;
    options_.max_batch_delay = absl::ZeroDuration();
    FakeDevice::Reset();
    for (int device = 0; device < FakeDevice::kDevices; ++device) before_[device] = FakeDevice::AllocatedBytes(device);
  }

  // Expects that nothing is left on the devices and that no access was a race, whatever ran.
  void TearDown() override {
    engine_.reset();
    for (int device = 0; device < FakeDevice::kDevices; ++device) {
      EXPECT_EQ(FakeDevice::AllocatedBytes(device), before_[device]) << FakeDevice::Name(device);
    }
    if (expects_races_) return;
    EXPECT_THAT(FakeDevice::Races(), ::testing::IsEmpty());
  }

  std::unique_ptr<Engine> MakeEngine(const std::string& device, const std::string& dtype = "float32",
                                     std::vector<std::unique_ptr<const Dataset>> datasets = {}) const {
    std::vector<ServedModel> models;
    models.push_back(LoadFixture(fixture_, device, dtype));
    auto engine = Engine::Create(options_, std::move(models), std::move(datasets));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  static CaptureRequest Request(std::vector<std::string> hook_points, const std::vector<int>& lengths,
                                uint32_t seed = 1) {
    std::vector<std::vector<uint32_t>> sequences;
    for (int length : lengths) {
      std::vector<uint32_t>& ids = sequences.emplace_back();
      for (int t = 0; t < length; ++t) ids.push_back(((seed = seed * 1664525 + 1013904223) >> 16) % 64);
    }
    CaptureRequest request;
    request.hook_points = std::move(hook_points);
    request.source = Tokens(sequences);
    request.max_message_bytes = 16384;
    request.provenance = true;
    return request;
  }

  static Collected Capture(Engine& engine, CaptureRequest request) {
    Collector collector(engine, std::move(request));
    EXPECT_TRUE(collector.status().ok()) << collector.status();
    return collector.status().ok() ? collector.ReadAll() : Collected();
  }

  // Returns the rows and the end of `request` with the model on the CPU.
  Collected Expected(CaptureRequest request, const std::string& dtype = "float32") const {
    const std::unique_ptr<Engine> engine = MakeEngine("cpu", dtype);
    return Capture(*engine, std::move(request));
  }

  // `tolerance` is relative to a row's norm.
  static void ExpectSameRows(const Collected& got, const Collected& expected, double tolerance = 2e-5) {
    ASSERT_TRUE(got.ended.has_value());
    EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
    ASSERT_EQ(got.hook_points.size(), expected.hook_points.size());
    for (size_t h = 0; h < got.hook_points.size(); ++h) {
      const Collected::Rows& a = got.hook_points[h];
      const Collected::Rows& b = expected.hook_points[h];
      ASSERT_EQ(a.values.size(), b.values.size()) << "hook point " << h;
      EXPECT_EQ(a.sequence, b.sequence);
      EXPECT_EQ(a.position, b.position);
      for (size_t row = 0; row < a.values.size(); ++row) {
        double difference = 0, size = 0;
        for (size_t j = 0; j < a.values[row].size(); ++j) {
          difference += std::pow(a.values[row][j] - b.values[row][j], 2);
          size += std::pow(b.values[row][j], 2);
        }
        ASSERT_LE(std::sqrt(difference), tolerance * std::sqrt(size)) << "hook point " << h << ", row " << row;
      }
    }
  }

  EngineOptions options_;
  std::string fixture_ = "families/gpt2";
  std::unique_ptr<Engine> engine_;
  int64_t before_[FakeDevice::kDevices] = {};
  bool expects_races_ = false;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_DEVICE_DEVICE_FIXTURE_H_
