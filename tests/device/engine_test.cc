// Tests the engine's promises on an accelerator.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/device/device_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::vector<std::string> kResidual = {"blocks.*.hook_resid_post"};
const std::vector<int> kLengths = {30, 3, 64, 17, 40, 1, 25, 60};

bool Eventually(const std::function<bool()>& holds, absl::Duration patience = absl::Seconds(20)) {
  for (const absl::Time end = absl::Now() + patience; absl::Now() < end; absl::SleepFor(absl::Milliseconds(5))) {
    if (holds()) return true;
  }
  return holds();
}

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
  // The device's norms round their weights to bfloat16, as the reference does.
  ExpectSameRows(Capture(*engine_, request), Expected(request, "bfloat16"), 3e-2);
}

TEST_F(DeviceEngineTest, NothingBlocksAfterTheFirstPassOfAShape) {
  engine_ = MakeEngine(FakeDevice::Name());
  CaptureRequest request = Request(kResidual, {64, 64, 64, 64});
  request.selection.position_stride = 2;
  Capture(*engine_, request);
  FakeDevice::Reset();
  const Collected got = Capture(*engine_, request);
  EXPECT_EQ(FakeDevice::counters().blocking_copies, 0);
  EXPECT_EQ(FakeDevice::counters().pageable_copies, 0);
  EXPECT_EQ(FakeDevice::counters().host_waits, 0) << "waits spin in CUDA";
  // Token ids and rows are uploaded once for each pass, however many hook points there are.
  EXPECT_LE(FakeDevice::counters().uploads, 2 * got.ended->batches);
}

TEST_F(DeviceEngineTest, AModelOnTheSecondDeviceNeverTouchesTheFirst) {
  engine_ = MakeEngine(FakeDevice::Name(1));
  CaptureRequest request = Request(kResidual, kLengths);
  const Collected got = Capture(*engine_, request);
  engine_.reset();
  EXPECT_EQ(FakeDevice::Switches(0), 0);
  EXPECT_EQ(FakeDevice::PeakBytes(0), before_[0]);
  ExpectSameRows(got, Expected(request));
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

// The memory varies between what the weights need and what a full batch needs: rows are right, or refused, and
// nothing leaks.
TEST_F(DeviceEngineTest, OutOfMemoryHalvesBatchesOrIsReportedAndNeverLeaks) {
  options_.max_batch_tokens = 512;  // one batch, most of whose memory is the pass's own
  const CaptureRequest request = Request(kResidual, {64, 64, 64, 64, 64, 64, 64, 64});
  const Collected expected = Expected(request);
  engine_ = MakeEngine(FakeDevice::Name());
  Capture(*engine_, request);  // makes the tables and masks
  const int64_t idle = FakeDevice::AllocatedBytes(0);
  FakeDevice::Reset();
  Capture(*engine_, request);
  const int64_t need = FakeDevice::PeakBytes(0) - idle;
  int64_t most_batches = 0, refused = 0;
  for (int64_t share = 100; share >= 0; share -= 10) {
    FakeDevice::LimitMemory(0, idle + need * share / 100);
    const Collected got = Capture(*engine_, request);
    if (got.ended->status.ok()) {
      ExpectSameRows(got, expected);
      most_batches = std::max(most_batches, got.ended->batches);
    } else {
      EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kResourceExhausted) << got.ended->status;
      ++refused;
    }
    EXPECT_EQ(FakeDevice::AllocatedBytes(0), idle) << share << " %";
  }
  EXPECT_GT(most_batches, expected.ended->batches);
  EXPECT_GE(refused, 1);
}

// Otherwise the device would idle while the client drains one window after the other.
TEST_F(DeviceEngineTest, TheNextBatchIsComputedWhileRowsOfTheLastOneLeave) {
  options_.window_slabs = 4;
  engine_ = MakeEngine(FakeDevice::Name());
  const CaptureRequest request = Request({"*"}, {64, 64, 64, 64, 64, 64, 64, 64});
  Collector reader(*engine_, request);
  reader.ReadChunks(1);
  EXPECT_TRUE(Eventually([&] { return engine_->Snapshot().models[0].tokens >= 256; })) << "two batches of 128";
  ExpectSameRows(reader.ReadAll(), Expected(request));
}

// Each of the six readers alone would keep the rows of a batch on the device, nearly half of the budget of all.
TEST_F(DeviceEngineTest, SlowReadersTogetherHoldNoMoreOfTheDeviceThanTheirBudget) {
  options_.window_slabs = 4;
  const CaptureRequest slow = Request(kResidual, {64, 64, 64, 64, 64, 64});
  const Collected expected = Expected(slow);
  const int64_t token_bytes =
      static_cast<int64_t>(expected.hook_points.size() * expected.hook_points[0].values[0].size() * sizeof(float));
  options_.max_staged_bytes = 2 * 128 * token_bytes;
  engine_ = MakeEngine(FakeDevice::Name());
  Capture(*engine_, slow);
  const int64_t idle = FakeDevice::AllocatedBytes(0);
  std::vector<std::unique_ptr<Collector>> readers;
  for (int i = 0; i < 6; ++i) readers.push_back(std::make_unique<Collector>(*engine_, slow));
  // A capture that needs no room for rows on the device is served meanwhile, though nobody reads.
  const CaptureRequest quick = Request({"hook_embed"}, kLengths, 9);
  const Collected quick_rows = Capture(*engine_, quick);
  const int64_t windows = 6 * options_.window_slabs * options_.slab_bytes;
  EXPECT_TRUE(Eventually([&] { return FakeDevice::AllocatedBytes(0) - idle <= options_.max_staged_bytes + windows; }))
      << FakeDevice::AllocatedBytes(0) - idle;
  for (const auto& reader : readers) ExpectSameRows(reader->ReadAll(), expected);
  ExpectSameRows(quick_rows, Expected(quick));
}

TEST_F(DeviceEngineTest, AModelWhoseFullBatchDoesNotFitIsRefusedAtTheStart) {
  const CaptureRequest request = Request(kResidual, kLengths);
  engine_ = MakeEngine(FakeDevice::Name());
  const int64_t need = FakeDevice::PeakBytes(0) - before_[0];
  engine_.reset();
  FakeDevice::LimitMemory(0, before_[0] + need - 1000);
  std::vector<ServedModel> models;
  models.push_back(LoadFixture(fixture_, FakeDevice::Name()));
  const auto refused = Engine::Create(options_, std::move(models), {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--max-batch-tokens"));
}

TEST_F(DeviceEngineTest, TwoModelsOnOneDeviceDoNotShareAStream) {
  std::vector<ServedModel> models;
  for (const char* name : {"a", "b"}) models.push_back(LoadFixture(fixture_, FakeDevice::Name(), "float32", name));
  auto engine = Engine::Create(options_, std::move(models), {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  engine_ = *std::move(engine);
  CaptureRequest request = Request(kResidual, kLengths);
  const Collected expected = Expected(request);
  std::vector<Collected> got(2);
  std::vector<std::thread> clients;
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([&, i] {
      CaptureRequest own = request;
      own.model = i == 0 ? "a" : "b";
      got[i] = Capture(*engine_, own);
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectSameRows(got[0], expected);
  ExpectSameRows(got[1], expected);
}

// A new process is the only cure for an error that stays; clients continue there with their resume tokens.
TEST_F(DeviceEngineTest, ADeviceThatFailsTwiceInARowEndsItsCapturesAndIsReported) {
  std::atomic<int> told{0};
  std::vector<ServedModel> models;
  models.push_back(LoadFixture(fixture_, FakeDevice::Name()));
  auto engine = Engine::Create(options_, std::move(models), {}, [&](const absl::Status&) { ++told; });
  ASSERT_TRUE(engine.ok()) << engine.status();
  engine_ = *std::move(engine);
  const CaptureRequest request = Request({"*"}, {64, 64, 64, 64, 64, 64, 64, 64});
  {
    Collector collector(*engine_, request);
    collector.ReadChunks(2);
    FakeDevice::FailWith("CUDA error: device-side assert triggered");
    const Collected& got = collector.ReadAll();
    EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kUnavailable) << got.ended->status;
    EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr("device-side assert"));
    EXPECT_FALSE(got.ended->resume_token.empty());
  }
  EXPECT_TRUE(Eventually([&] { return told == 1; }));
  EXPECT_EQ(Collector(*engine_, request).status().code(), absl::StatusCode::kUnavailable);
  engine_.reset();  // the device still fails, as it does when a process ends
  FakeDevice::FailWith("");
}

// This is sabotage: without its waits the same code is wrong, and the fake device reports it.
TEST_F(DeviceEngineTest, ARemovedWaitIsSeen) {
  expects_races_ = true;
  engine_ = MakeEngine(FakeDevice::Name());
  FakeDevice::IgnoreStreamWaits();
  Capture(*engine_, Request(kResidual, kLengths));
  EXPECT_THAT(FakeDevice::Races(), Not(IsEmpty()));
}

}  // namespace
}  // namespace hookline
