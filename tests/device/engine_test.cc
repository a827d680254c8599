// The engine's promises on an accelerator.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "gmock/gmock.h"
#include "tests/device/device_fixture.h"

namespace hookline {
namespace {

using ::testing::IsEmpty;
using ::testing::Not;

const std::vector<std::string> kResidual = {"blocks.*.hook_resid_post"};
const std::vector<int> kLengths = {30, 3, 64, 17, 40, 1, 25, 60};

TEST_F(DeviceEngineTest, RowsEqualTheCpusForCapturesThatShareTheDevice) {
  engine_ = MakeEngine(FakeDevice::Name());
  std::vector<CaptureRequest> requests;
  for (uint32_t i = 0; i < 8; ++i) {
    CaptureRequest request = Request(i % 2 == 0 ? kResidual : std::vector<std::string>{"*"}, kLengths, i + 1);
    if (i % 3 == 1) request.selection.position_stride = 3;
    if (i % 4 == 2) request.max_activations = 77;
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

TEST_F(DeviceEngineTest, RowsInBFloat16EqualTheCpusToItsPrecision) {
  engine_ = MakeEngine(FakeDevice::Name(), "bfloat16");
  CaptureRequest request = Request(kResidual, kLengths);
  request.dtype = Dtype::kBFloat16;
  ExpectSameRows(Capture(*engine_, request), Expected(request, "bfloat16"), 2e-2);
}

TEST_F(DeviceEngineTest, ASlowReaderLosesNothingAndDelaysNobody) {
  options_.window_slabs = 4;
  engine_ = MakeEngine(FakeDevice::Name());
  const CaptureRequest slow = Request({"*"}, {64, 64, 64, 64, 64, 64});
  const CaptureRequest quick = Request(kResidual, kLengths, 9);
  Collector reader(*engine_, slow, "a slow client");
  reader.ReadChunks(1);
  const Collected got = Capture(*engine_, quick);
  ExpectSameRows(reader.ReadAll(), Expected(slow));
  ExpectSameRows(got, Expected(quick));
}

TEST_F(DeviceEngineTest, AResumedCaptureGoesOnWhereItWasCut) {
  engine_ = MakeEngine(FakeDevice::Name());
  const CaptureRequest request = Request(kResidual, kLengths);
  Collected got;
  CaptureRequest rest = request;
  {
    Collector first(*engine_, request);
    rest.resume_token = first.ReadChunks(3).chunks.back().resume_token;
    got = first.collected();
  }
  {
    Collector probe(*engine_, rest);
    probe.ReadOne();
    std::get<TokenBatch>(rest.source).RemoveFirst(probe.collected().started->next_sequence);
  }
  Collected second = Capture(*engine_, rest);
  for (size_t h = 0; h < got.hook_points.size(); ++h) {
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    append(got.hook_points[h].values, second.hook_points[h].values);
    append(got.hook_points[h].sequence, second.hook_points[h].sequence);
    append(got.hook_points[h].position, second.hook_points[h].position);
  }
  got.ended = second.ended;
  ExpectSameRows(got, Expected(request));
}

TEST_F(DeviceEngineTest, MembersOfAFeedGetTheSameRowsFromOnePass) {
  const std::string path = "/tmp/hookline-device-test-" + std::to_string(getpid()) + ".bin";
  {
    std::ofstream out(path, std::ios::binary);
    for (uint16_t i = 0; i < 20 * 32; ++i) {
      const uint16_t id = static_cast<uint16_t>(i * 7 % 64);
      out.write(reinterpret_cast<const char*>(&id), sizeof(id));
    }
  }
  std::vector<std::unique_ptr<const Dataset>> datasets;
  datasets.push_back(Dataset::Open("corpus", path + ":uint16").value());
  engine_ = MakeEngine(FakeDevice::Name(), "float32", std::move(datasets));
  CaptureRequest request = Request(kResidual, {});
  request.source = FeedSource{"feed", {"corpus", 32, 0, 0, {}, {}}, /*start_when_subscribers=*/3, OnLag::kWait};
  std::vector<Collected> got(3);
  std::vector<std::thread> members;
  for (Collected& own : got) members.emplace_back([&] { own = Capture(*engine_, request); });
  for (std::thread& member : members) member.join();
  std::remove(path.c_str());
  ASSERT_EQ(got[0].hook_points[0].values.size(), 640u);
  ExpectSameRows(got[1], got[0], 0);
  ExpectSameRows(got[2], got[0], 0);
}

// This is sabotage: without its waits the same code is wrong, and the device says so.
TEST_F(DeviceEngineTest, ARemovedWaitIsSeen) {
  expects_races_ = true;
  engine_ = MakeEngine(FakeDevice::Name());
  FakeDevice::IgnoreStreamWaits();
  Capture(*engine_, Request(kResidual, kLengths));
  EXPECT_THAT(FakeDevice::Races(), Not(IsEmpty()));
}

}  // namespace
}  // namespace hookline
