// The C interface against a server in this process.
#include "client/cpp/c_api.h"

#include <array>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "hookline/v1/capture_service.pb.h"
#include "tests/client/capture_server.h"

namespace hookline::client {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kForEver = -1;
constexpr int kHookPoints = 2;

// Memory of one batch. What nobody wrote is -1.
struct Buffers {
  explicit Buffers(int64_t rows) : rows(rows) {
    for (auto& buffer : values) buffer.assign(static_cast<size_t>(rows * kFakeWidth), -1);
    sequence.assign(static_cast<size_t>(rows), -1);
    position.assign(static_cast<size_t>(rows), -1);
    token_id.assign(static_cast<size_t>(rows), 0);
  }
  // The first column.
  std::vector<float> Rows(int hook_point, int64_t count) const {
    std::vector<float> column;
    for (int64_t r = 0; r < count; ++r) {
      column.push_back(values[hook_point][r * kFakeWidth]);
      for (int c = 1; c < kFakeWidth; ++c) EXPECT_EQ(values[hook_point][r * kFakeWidth + c], column.back());
    }
    return column;
  }

  const int64_t rows;
  std::array<std::vector<float>, kHookPoints> values;
  std::vector<int64_t> sequence;
  std::vector<int32_t> position;
  std::vector<uint32_t> token_id;
};

class CApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(hookline_client_connect(server_.address().c_str(), 0, &client_, &error_), HOOKLINE_OK);
  }
  void TearDown() override {
    hookline_capture_free(capture_);
    hookline_client_free(client_);
  }

  void Start(const v1::CaptureRequest& request = {}, int32_t method = HOOKLINE_CAPTURE) {
    const std::string bytes = request.SerializeAsString();
    ASSERT_EQ(hookline_capture_start(client_, method, bytes.data(), bytes.size(), &capture_, &error_), HOOKLINE_OK);
  }
  v1::CaptureStarted Started() {
    const void* message = nullptr;
    size_t bytes = 0;
    v1::CaptureStarted started;
    EXPECT_EQ(hookline_capture_started(capture_, kForEver, &message, &bytes, &error_), HOOKLINE_OK) << error_.message;
    EXPECT_TRUE(message != nullptr && started.ParseFromArray(message, static_cast<int>(bytes)));
    return started;
  }
  int32_t Submit(Buffers& buffers, bool provenance = false) {
    void* data[kHookPoints] = {buffers.values[0].data(), buffers.values[1].data()};
    hookline_batch batch = {buffers.rows, data, nullptr, nullptr, nullptr};
    if (provenance) {
      batch.sequence = buffers.sequence.data();
      batch.position = buffers.position.data();
      batch.token_id = buffers.token_id.data();
    }
    return hookline_capture_submit(capture_, &batch, &error_);
  }
  int32_t Wait(int64_t timeout_ms = kForEver) {
    return hookline_capture_wait(capture_, timeout_ms, rows_.data(), &error_);
  }
  int32_t Resume() {
    std::string token(hookline_capture_resume_token(capture_, nullptr, 0), '\0');
    EXPECT_EQ(hookline_capture_resume_token(capture_, token.data(), token.size()), token.size());
    v1::CaptureRequest request;
    request.set_resume_token(token);
    const std::string bytes = request.SerializeAsString();
    return hookline_capture_resume(capture_, bytes.data(), bytes.size(), &error_);
  }
  static std::vector<float> Expected(int hook_point, int64_t first, int64_t count) {
    std::vector<float> rows;
    for (int64_t r = first; r < first + count; ++r) rows.push_back(FakeValue(hook_point, r));
    return rows;
  }
  void ExpectError(absl::StatusCode code, const std::string& part) {
    EXPECT_EQ(error_.code, static_cast<int32_t>(code));
    EXPECT_THAT(error_.message, HasSubstr(part));
  }

  CaptureServer server_;
  hookline_client* client_ = nullptr;
  hookline_capture* capture_ = nullptr;
  hookline_error error_ = {};
  std::array<int64_t, kHookPoints> rows_ = {};
};

TEST_F(CApiTest, FillsBatchesInOrderWhereverChunksAreCut) {
  v1::CaptureRequest request;
  request.set_provenance(true);
  Start(request);
  EXPECT_EQ(Started().hook_points(1).hook_point(), "hook1");
  std::vector<Buffers> batches(3, Buffers(4));
  for (Buffers& batch : batches) ASSERT_EQ(Submit(batch, /*provenance=*/true), HOOKLINE_OK) << error_.message;
  const std::array<int64_t, 3> counts = {4, 4, 2};
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(Wait(), HOOKLINE_OK) << error_.message;
    EXPECT_THAT(rows_, Each(counts[i]));
    for (int h = 0; h < kHookPoints; ++h) EXPECT_EQ(batches[i].Rows(h, counts[i]), Expected(h, 4 * i, counts[i]));
    for (int64_t r = 0; r < counts[i]; ++r) {
      EXPECT_EQ(batches[i].sequence[r], i);
      EXPECT_EQ(batches[i].position[r], r);
      EXPECT_EQ(batches[i].token_id[r], 100 + 4 * i + r);
    }
  }
  EXPECT_EQ(batches[2].values[0].back(), -1) << "rows that never came were written";
  EXPECT_EQ(Wait(), HOOKLINE_END);
  const void* message = nullptr;
  size_t bytes = 0;
  ASSERT_EQ(hookline_capture_summary(capture_, &message, &bytes), HOOKLINE_OK);
  v1::CaptureSummary summary;
  ASSERT_TRUE(summary.ParseFromArray(message, static_cast<int>(bytes)));
  EXPECT_EQ(summary.stop_reason(), v1::STOP_REASON_BUDGET);
}

TEST_F(CApiTest, ABatchIsFinishedWhereASmallerBudgetEnds) {
  Script script;
  script.budgets = {10, 5};
  server_.Set(script);
  Start();
  Started();
  std::vector<Buffers> batches(3, Buffers(4));
  for (Buffers& batch : batches) ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  for (const auto& [first, second] : std::vector<std::pair<int64_t, int64_t>>{{4, 4}, {4, 1}, {2, 0}}) {
    ASSERT_EQ(Wait(), HOOKLINE_OK) << error_.message;
    EXPECT_THAT(rows_, ElementsAre(first, second));
  }
  EXPECT_EQ(Wait(), HOOKLINE_END);
}

TEST_F(CApiTest, ContinuesAfterBreaksSoThatNoRowIsMissingOrComesTwice) {
  Script script;
  script.breaks = {3, 0, 2};  // between the chunks of a row group, before any chunk, and after one
  server_.Set(script);
  Start();
  Started();
  std::vector<Buffers> batches(3, Buffers(4));
  for (Buffers& batch : batches) ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  int breaks = 0;
  for (int i = 0; i < 3; ++i) {
    int32_t result;
    while ((result = Wait()) == HOOKLINE_ERROR) {
      ExpectError(absl::StatusCode::kUnavailable, "the connection broke");
      if (breaks == 0) EXPECT_THAT(rows_, ElementsAre(4, 3)) << "what the oldest batch holds so far";
      ASSERT_LE(++breaks, 3);
      ASSERT_EQ(Resume(), HOOKLINE_OK) << error_.message;
    }
    ASSERT_EQ(result, HOOKLINE_OK);
    for (int h = 0; h < kHookPoints; ++h) EXPECT_EQ(batches[i].Rows(h, rows_[h]), Expected(h, 4 * i, rows_[h]));
  }
  EXPECT_EQ(breaks, 3);
  EXPECT_EQ(Wait(), HOOKLINE_END);
}

TEST_F(CApiTest, RefusesToContinueWithOtherWeights) {
  Script script;
  script.breaks = {1};
  server_.Set(script);
  Start();
  Started();
  Buffers batch(10);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  ASSERT_EQ(Wait(), HOOKLINE_ERROR);
  script.breaks.clear();
  script.fingerprint = "other weights";
  server_.Set(script);
  ASSERT_EQ(Resume(), HOOKLINE_OK);
  ASSERT_EQ(Wait(), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kFailedPrecondition, "fingerprint");
}

TEST_F(CApiTest, OnlyACaptureThatBrokeCanBeResumed) {
  Script script;
  script.holds = true;
  server_.Set(script);
  Start();
  Started();
  EXPECT_EQ(Resume(), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kFailedPrecondition, "has not failed");
}

TEST_F(CApiTest, WaitsNoLongerThanItWasTold) {
  Script script;
  script.holds = true;
  server_.Set(script);
  Start();
  Started();
  Buffers batch(4);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  EXPECT_EQ(Wait(0), HOOKLINE_TIMEOUT);
  EXPECT_EQ(Wait(20), HOOKLINE_TIMEOUT);
  server_.Release();
  ASSERT_EQ(Wait(), HOOKLINE_OK);
  EXPECT_THAT(rows_, ElementsAre(4, 4));
}

TEST_F(CApiTest, CancelEndsAWaitThatRuns) {
  Script script;
  script.holds = true;
  server_.Set(script);
  Start();
  Started();
  Buffers batch(4);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  int32_t result = HOOKLINE_OK;
  std::thread waiter([&] { result = Wait(); });
  hookline_capture_cancel(capture_);
  hookline_capture_cancel(capture_);
  waiter.join();
  EXPECT_EQ(result, HOOKLINE_ERROR);
  EXPECT_EQ(error_.code, static_cast<int32_t>(absl::StatusCode::kCancelled));
}

TEST_F(CApiTest, FreeEndsACaptureThatRunsAndLeavesTheBuffersAlone) {
  Script script;
  script.budgets = {int64_t{1} << 40, int64_t{1} << 40};
  script.group_rows = 1000;
  server_.Set(script);
  Start();
  Started();
  Buffers first(500), second(500);
  ASSERT_EQ(Submit(first), HOOKLINE_OK);
  ASSERT_EQ(Submit(second), HOOKLINE_OK);
  ASSERT_EQ(Wait(), HOOKLINE_OK);
  hookline_capture_free(std::exchange(capture_, nullptr));
  server_.AwaitAbandoned();
  second.values[0].assign(second.values[0].size(), 7);
  EXPECT_THAT(second.values[0], Each(7));
}

TEST_F(CApiTest, ACaptureMayOutliveItsClient) {
  Start();
  hookline_client_free(std::exchange(client_, nullptr));
  Started();
  Buffers batch(10);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  EXPECT_EQ(Wait(), HOOKLINE_OK);
  EXPECT_EQ(batch.Rows(1, 10), Expected(1, 0, 10));
}

TEST_F(CApiTest, StreamsSequencesIn) {
  Start({}, HOOKLINE_CAPTURE_STREAM);
  const std::vector<uint32_t> ids = {1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> lengths = {1, 3, 2};
  ASSERT_EQ(hookline_capture_write_tokens(capture_, ids.data(), lengths.data(), 3, &error_), HOOKLINE_OK);
  const int64_t negative = -1;
  EXPECT_EQ(hookline_capture_write_tokens(capture_, ids.data(), &negative, 1, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "lengths[0]: -1");
  hookline_capture_finish_tokens(capture_);
  Started();
  EXPECT_THAT(server_.sequences(), ElementsAre(ElementsAre(1), ElementsAre(2, 3, 4), ElementsAre(5, 6)));
  Buffers batch(10);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  ASSERT_EQ(Wait(), HOOKLINE_OK);
  ASSERT_EQ(Wait(), HOOKLINE_END);
  EXPECT_EQ(hookline_capture_write_tokens(capture_, ids.data(), lengths.data(), 3, &error_), HOOKLINE_END);
}

TEST_F(CApiTest, ACaptureWithoutASummaryIsBroken) {
  Script script;
  script.summary = false;
  server_.Set(script);
  Start();
  Started();
  Buffers batch(20);
  ASSERT_EQ(Submit(batch), HOOKLINE_OK);
  int32_t result = Wait();
  if (result == HOOKLINE_OK) result = Wait();
  EXPECT_EQ(result, HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kUnavailable, "without a summary");
}

TEST_F(CApiTest, RefusesBatchesThatContradictTheCapture) {
  Script script;
  script.holds = true;
  server_.Set(script);
  Start();
  Started();
  Buffers batch(4);
  void* data[kHookPoints] = {batch.values[0].data(), nullptr};
  hookline_batch wrong = {4, data, nullptr, nullptr, nullptr};
  EXPECT_EQ(hookline_capture_submit(capture_, &wrong, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "data[1]: null");
  data[1] = batch.values[1].data();
  wrong.rows = 0;
  EXPECT_EQ(hookline_capture_submit(capture_, &wrong, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "rows: 0");
  wrong.rows = 4;
  wrong.position = batch.position.data();
  EXPECT_EQ(hookline_capture_submit(capture_, &wrong, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "sequence, position, token_id");
  EXPECT_EQ(Wait(), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kFailedPrecondition, "no batch is submitted");
}

TEST_F(CApiTest, TakesAtMostAThousandBatchesAhead) {
  Script script;
  script.budgets = {5000, 5000};
  script.group_rows = 1;
  script.holds = true;
  server_.Set(script);
  Start();
  Started();
  std::vector<Buffers> batches(1025, Buffers(2));
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(Submit(batches[i]), HOOKLINE_OK) << i;
  EXPECT_EQ(Submit(batches[1024]), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kResourceExhausted, "1024");
}

TEST_F(CApiTest, TellsWhatTheServerObjectsTo) {
  v1::CaptureRequest request;
  request.set_resume_token("nonsense");
  Start(request);
  const void* message = nullptr;
  size_t bytes = 0;
  EXPECT_EQ(hookline_capture_started(capture_, kForEver, &message, &bytes, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "resume_token");
}

TEST_F(CApiTest, TellsThatTheServerIsGone) {
  server_.Shutdown();
  Start();
  const void* message = nullptr;
  size_t bytes = 0;
  EXPECT_EQ(hookline_capture_started(capture_, kForEver, &message, &bytes, &error_), HOOKLINE_ERROR);
  EXPECT_EQ(error_.code, static_cast<int32_t>(absl::StatusCode::kUnavailable));
}

TEST_F(CApiTest, RefusesWhatItCannotBeAskedFor) {
  EXPECT_EQ(hookline_abi_version(), HOOKLINE_ABI_VERSION);
  hookline_client* client = nullptr;
  EXPECT_EQ(hookline_client_connect("", 0, &client, &error_), HOOKLINE_ERROR);
  EXPECT_EQ(error_.code, static_cast<int32_t>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(hookline_client_connect("localhost:1", int64_t{17} << 20, &client, &error_), HOOKLINE_ERROR);
  EXPECT_EQ(error_.code, static_cast<int32_t>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(hookline_capture_start(client_, 3, nullptr, 0, &capture_, &error_), HOOKLINE_ERROR);
  ExpectError(absl::StatusCode::kInvalidArgument, "method: 3");
  hookline_client_free(nullptr);
  hookline_capture_free(nullptr);
}

}  // namespace
}  // namespace hookline::client
