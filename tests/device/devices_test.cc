// Tests replicas and stages on two accelerators.
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/device/device_fixture.h"

namespace hookline {
namespace {

const std::vector<int> kLengths = {30, 3, 64, 17, 40, 1, 25, 60, 64, 64, 12, 50, 64, 33, 64, 64};

class DevicesEngineTest : public DeviceEngineTest {
 protected:
  // `devices`: in the spelling of --device.
  std::unique_ptr<Engine> MakeEngineOn(const std::string& devices) {
    ModelOptions options;
    options.path = std::string(HOOKLINE_FIXTURES) + "/" + fixture_;
    options.device = devices;
    options.dtype = "float32";
    auto served = LoadServedModel(options);
    EXPECT_TRUE(served.ok()) << served.status();
    std::vector<ServedModel> models;
    models.push_back(*std::move(served));
    auto engine = Engine::Create(options_, std::move(models), {});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  // Expects eight concurrent captures to give the rows that they give on the CPU.
  void ExpectRowsOfTheCpu() {
    std::vector<CaptureRequest> requests;
    for (uint32_t i = 0; i < 8; ++i) {
      CaptureRequest request =
          Request(i % 2 == 0 ? std::vector<std::string>{"*"} : std::vector<std::string>{"blocks.*.hook_resid_post"},
                  kLengths, i + 1);
      if (i % 3 == 1) request.selection.position_stride = 3;
      if (i % 4 == 2) request.max_activations = 177;
      if (i == 5) request.deterministic = true;
      requests.push_back(request);
    }
    std::vector<Collected> got(requests.size());
    std::vector<std::thread> clients;
    for (size_t i = 0; i < requests.size(); ++i) {
      clients.emplace_back([&, i] { got[i] = Capture(*engine_, requests[i]); });
    }
    for (std::thread& client : clients) client.join();
    for (size_t i = 0; i < requests.size(); ++i) ExpectSameRows(got[i], Expected(requests[i]));
  }
};

TEST_F(DevicesEngineTest, ReplicasOnTwoDevicesBringTheRowsOfOne) {
  engine_ = MakeEngineOn(FakeDevice::Name(0) + "," + FakeDevice::Name(1));
  ExpectRowsOfTheCpu();
  const EngineSnapshot snapshot = engine_->Snapshot();
  for (const EngineSnapshot::ReplicaLoad& replica : snapshot.models[0].replicas) EXPECT_GT(replica.tokens, 0);
}

TEST_F(DevicesEngineTest, TapsLeaveFromTheDeviceOfTheirStage) {
  engine_ = MakeEngineOn(FakeDevice::Name(0) + "+" + FakeDevice::Name(1));
  EXPECT_GT(FakeDevice::AllocatedBytes(0), before_[0]);
  EXPECT_GT(FakeDevice::AllocatedBytes(1), before_[1]);
  ExpectRowsOfTheCpu();
}

TEST_F(DevicesEngineTest, StagesOnTheCpuBringTheRowsOfTheWhole) {
  engine_ = MakeEngineOn("cpu+cpu,cpu+cpu");
  ExpectRowsOfTheCpu();
}

TEST_F(DevicesEngineTest, ADeviceThatFailsTakesOnlyItsReplicaDown) {
  engine_ = MakeEngineOn(FakeDevice::Name(0) + "," + FakeDevice::Name(1));
  const CaptureRequest request = Request({"*"}, kLengths);
  const Collected expected = Expected(request);
  Collector reader(*engine_, request);
  reader.ReadChunks(2);
  FakeDevice::FailDevice(1, "CUDA error: device-side assert triggered");
  ExpectSameRows(reader.ReadAll(), expected);
  const absl::Time end = absl::Now() + absl::Seconds(20);
  while (!engine_->Snapshot().models[0].replicas[1].is_lost && absl::Now() < end) {
    ExpectSameRows(Capture(*engine_, request), expected);
  }
  EXPECT_TRUE(engine_->Snapshot().models[0].replicas[1].is_lost);
  EXPECT_FALSE(engine_->Snapshot().models[0].replicas[0].is_lost);
  ExpectSameRows(Capture(*engine_, request), expected);
}

}  // namespace
}  // namespace hookline
