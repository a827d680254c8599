// Tests the C interface, called as C would call it, against a server in this process.
#include "client/cpp/c_api.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/cli/fake_server.h"

namespace hookline {
namespace {

using cli::FakeServer;
using cli::FakeValue;
using cli::kFakeWidth;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kResid[] = "blocks.0.hook_resid_post";
constexpr char kMlp[] = "blocks.1.hook_mlp_out";
// Nothing here takes nearly this long; a test that waits this long has failed.
constexpr int64_t kPatienceMs = 20'000;

// The buffers of one batch of two hook points.
struct Buffers {
  explicit Buffers(int64_t rows)
      : first(rows * kFakeWidth, -1),
        second(rows * kFakeWidth, -1),
        sequence(rows, -1),
        position(rows, -1),
        token_id(rows, 0),
        data{first.data(), second.data()},
        batch{rows, data, sequence.data(), position.data(), token_id.data()} {}
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  std::vector<float> first, second;
  std::vector<int64_t> sequence;
  std::vector<int32_t> position;
  std::vector<uint32_t> token_id;
  void* data[2];
  hookline_batch batch;
};

// The result of a capture.
struct Rows {
  std::vector<float> first, second;
  std::vector<int64_t> sequence;
  std::vector<int32_t> position;
  std::vector<uint32_t> token_id;

  void Add(const Buffers& buffers, const int64_t rows[2]) {
    const auto add = [](auto& to, const auto& from, int64_t count) {
      to.insert(to.end(), from.begin(), from.begin() + count);
    };
    add(first, buffers.first, rows[0] * kFakeWidth);
    add(second, buffers.second, rows[1] * kFakeWidth);
    const int64_t most = std::max(rows[0], rows[1]);
    add(sequence, buffers.sequence, most);
    add(position, buffers.position, most);
    add(token_id, buffers.token_id, most);
  }
};

// The rows of the fake server's dataset: sequences i, i + 1, i + 2 for i below 5.
Rows Expected(int64_t first_rows, int64_t second_rows) {
  Rows rows;
  for (int64_t row = 0; row < std::max(first_rows, second_rows); ++row) {
    const auto token = static_cast<uint32_t>(row / 3 + row % 3);
    for (int column = 0; column < kFakeWidth; ++column) {
      if (row < first_rows) rows.first.push_back(FakeValue(kResid, token, column));
      if (row < second_rows) rows.second.push_back(FakeValue(kMlp, token, column));
    }
    rows.sequence.push_back(row / 3);
    rows.position.push_back(static_cast<int32_t>(row % 3));
    rows.token_id.push_back(token);
  }
  return rows;
}

void ExpectSame(const Rows& rows, const Rows& expected) {
  EXPECT_EQ(rows.first, expected.first);
  EXPECT_EQ(rows.second, expected.second);
  EXPECT_EQ(rows.sequence, expected.sequence);
  EXPECT_EQ(rows.position, expected.position);
  EXPECT_EQ(rows.token_id, expected.token_id);
}

class CApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(hookline_client_connect(server_.address().c_str(), 0, -1, &client_, &error_), HOOKLINE_OK);
  }
  void TearDown() override {
    hookline_capture_free(capture_);
    hookline_client_free(client_);
  }

  // Returns memory for a batch of `rows` rows, which lives as long as the fixture: a capture can write into submitted
  // memory until it is freed, and TearDown frees it after the test's own variables are gone.
  Buffers& NewBuffers(int64_t rows) { return buffers_.emplace_back(rows); }

  static v1::CaptureRequest Request() {
    v1::CaptureRequest request;
    request.add_hook_points(kResid);
    request.add_hook_points(kMlp);
    request.set_provenance(true);
    return request;
  }
  static v1::CaptureRequest DatasetRequest() {
    v1::CaptureRequest request = Request();
    request.mutable_dataset()->set_name("counting");
    return request;
  }

  void Start(int32_t method, const v1::CaptureRequest& request) {
    const std::string encoded = request.SerializeAsString();
    ASSERT_EQ(hookline_capture_start(client_, method, encoded.data(), encoded.size(), &capture_, &error_), HOOKLINE_OK);
  }
  int32_t WaitForStarted(v1::CaptureStarted* started = nullptr) {
    const void* message = nullptr;
    size_t bytes = 0;
    const int32_t result = hookline_capture_started(capture_, kPatienceMs, &message, &bytes, &error_);
    if (result == HOOKLINE_OK && started != nullptr) started->ParseFromArray(message, static_cast<int>(bytes));
    return result;
  }
  int32_t Submit(const Buffers& buffers) { return hookline_capture_submit(capture_, &buffers.batch, &error_); }
  int32_t Wait(int64_t rows[2], int64_t timeout_ms = kPatienceMs) {
    return hookline_capture_wait(capture_, timeout_ms, rows, &error_);
  }
  std::string Token() {
    std::string token(hookline_capture_resume_token(capture_, nullptr, 0), '\0');
    hookline_capture_resume_token(capture_, token.data(), token.size());
    return token;
  }

  // Reads the capture to its end with `ahead` batches submitted, resuming wherever it breaks.
  Rows ReadAll(v1::CaptureRequest request, int64_t batch_rows, int ahead, int* breaks) {
    Rows rows;
    std::deque<std::unique_ptr<Buffers>> submitted;
    EXPECT_EQ(WaitForStarted(), HOOKLINE_OK) << error_.message;
    while (true) {
      while (static_cast<int>(submitted.size()) < ahead) {
        submitted.push_back(std::make_unique<Buffers>(batch_rows));
        EXPECT_EQ(Submit(*submitted.back()), HOOKLINE_OK) << error_.message;
      }
      int64_t counts[2];
      const int32_t result = Wait(counts);
      if (result == HOOKLINE_OK) {
        rows.Add(*submitted.front(), counts);
        submitted.pop_front();
      } else if (result == HOOKLINE_ERROR && error_.code == 14 && ++*breaks < 100) {
        request.set_resume_token(Token());
        const std::string encoded = request.SerializeAsString();
        EXPECT_EQ(hookline_capture_resume(capture_, encoded.data(), encoded.size(), &error_), HOOKLINE_OK);
      } else {
        EXPECT_EQ(result, HOOKLINE_END) << error_.message;
        return rows;
      }
    }
  }

  void ExpectError(int32_t result, absl::StatusCode code, const std::string& part) {
    EXPECT_EQ(result, HOOKLINE_ERROR);
    EXPECT_EQ(error_.code, static_cast<int32_t>(code)) << error_.message;
    EXPECT_THAT(error_.message, HasSubstr(part));
  }

  FakeServer server_;
  std::deque<Buffers> buffers_;
  hookline_client* client_ = nullptr;
  hookline_capture* capture_ = nullptr;
  hookline_error error_ = {};
};

TEST_F(CApiTest, TellsTheTextsOfTheTokensThatCame) {
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  int breaks = 0;
  const Rows rows = ReadAll(DatasetRequest(), /*batch_rows=*/4, /*ahead=*/1, &breaks);
  const void* text = nullptr;
  size_t bytes = 0;
  for (uint32_t token : rows.token_id) {
    ASSERT_EQ(hookline_capture_token_text(capture_, token, &text, &bytes), HOOKLINE_OK) << token;
    EXPECT_EQ(std::string(static_cast<const char*>(text), bytes), absl::StrCat("<", token, ">"));
  }
  EXPECT_EQ(hookline_capture_token_text(capture_, 999, &text, &bytes), HOOKLINE_TIMEOUT);
}

TEST_F(CApiTest, FillsBatchesOfAnySizeInOrderAndTellsTheEnd) {
  for (int64_t batch_rows : {1, 2, 3, 4, 7, 15, 100}) {
    for (int ahead : {1, 3}) {
      Start(HOOKLINE_CAPTURE, DatasetRequest());
      int breaks = 0;
      ExpectSame(ReadAll(DatasetRequest(), batch_rows, ahead, &breaks), Expected(15, 15));
      EXPECT_EQ(breaks, 0);
      const void* message = nullptr;
      size_t bytes = 0;
      ASSERT_EQ(hookline_capture_summary(capture_, &message, &bytes), HOOKLINE_OK);
      v1::CaptureSummary summary;
      ASSERT_TRUE(summary.ParseFromArray(message, static_cast<int>(bytes)));
      EXPECT_EQ(summary.hook_points(1).rows(), 15);
      int64_t rows[2];
      EXPECT_EQ(Wait(rows), HOOKLINE_END);
      EXPECT_THAT(rows, Each(0));
      hookline_capture_free(std::exchange(capture_, nullptr));
    }
  }
}

TEST_F(CApiTest, BudgetsThatDifferEndTheirHookPointOnly) {
  v1::CaptureRequest request = DatasetRequest();
  request.set_max_activations(11);
  (*request.mutable_max_activations_by_hook_point())[kMlp] = 5;
  for (int64_t batch_rows : {1, 4, 5, 20}) {
    Start(HOOKLINE_CAPTURE, request);
    int breaks = 0;
    ExpectSame(ReadAll(request, batch_rows, 2, &breaks), Expected(11, 5));
    hookline_capture_free(std::exchange(capture_, nullptr));
  }
}

TEST_F(CApiTest, AResumeRepeatsNoRowAndDropsNone) {
  // There are 16 chunks; the call breaks before each of them, and twice at the same chunk.
  for (int chunk = 0; chunk < 20; ++chunk) {
    server_.BreakAfter(chunk);
    if (chunk % 3 == 0) server_.BreakAfter(0);
    Start(HOOKLINE_CAPTURE, DatasetRequest());
    int breaks = 0;
    ExpectSame(ReadAll(DatasetRequest(), 4, 2, &breaks), Expected(15, 15));
    EXPECT_EQ(breaks, chunk % 3 == 0 ? 2 : 1) << chunk;
    hookline_capture_free(std::exchange(capture_, nullptr));
  }
}

TEST_F(CApiTest, TheSummaryCoversAllCalls) {
  server_.ShutDownAfter(3);
  server_.ShutDownAfter(5);
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  int breaks = 0;
  ExpectSame(ReadAll(DatasetRequest(), 4, 2, &breaks), Expected(15, 15));
  EXPECT_EQ(breaks, 2);
  const void* message = nullptr;
  size_t bytes = 0;
  ASSERT_EQ(hookline_capture_summary(capture_, &message, &bytes), HOOKLINE_OK);
  v1::CaptureSummary summary;
  ASSERT_TRUE(summary.ParseFromArray(message, static_cast<int>(bytes)));
  EXPECT_EQ(summary.batches(), 3);
  for (const v1::HookPointSummary& point : summary.hook_points()) {
    EXPECT_EQ(point.rows(), 15);
    EXPECT_EQ(point.statistics_rows(), 15);
    EXPECT_EQ(point.nan_count(), 3 * 3);
  }
}

TEST(CApi, TellsThePolicyOfReconnects) {
  EXPECT_EQ(hookline_reconnect_delay_ms(1), 250);
  EXPECT_EQ(hookline_reconnect_delay_ms(4), 2000);
  EXPECT_EQ(hookline_reconnect_delay_ms(10), 8000);
  EXPECT_EQ(hookline_reconnect_delay_ms(11), -1);
}

TEST_F(CApiTest, CountsWhatWasHandedOverForACallerThatWasInterrupted) {
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  const auto progress = [this] {
    int64_t submitted = -1, returned = -1;
    hookline_capture_progress(capture_, &submitted, &returned);
    return std::make_pair(submitted, returned);
  };
  EXPECT_EQ(progress(), std::make_pair(int64_t{0}, int64_t{0}));
  ASSERT_EQ(Submit(NewBuffers(3)), HOOKLINE_OK);
  ASSERT_EQ(Submit(NewBuffers(3)), HOOKLINE_OK);
  EXPECT_EQ(progress().first, 2);
  int64_t rows[2];
  ASSERT_EQ(Wait(rows), HOOKLINE_OK);
  EXPECT_EQ(progress(), std::make_pair(int64_t{2}, int64_t{1}));
}

TEST_F(CApiTest, OtherWeightsAfterAResumeAreAnError) {
  server_.BreakAfter(3);
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  Buffers& buffers = NewBuffers(100);
  ASSERT_EQ(Submit(buffers), HOOKLINE_OK);
  int64_t rows[2];
  ExpectError(Wait(rows), absl::StatusCode::kUnavailable, "the connection broke");
  EXPECT_THAT(rows, ElementsAre(3, 2));
  server_.SetFingerprint("another");
  v1::CaptureRequest request = DatasetRequest();
  request.set_resume_token(Token());
  const std::string encoded = request.SerializeAsString();
  ASSERT_EQ(hookline_capture_resume(capture_, encoded.data(), encoded.size(), &error_), HOOKLINE_OK);
  ExpectError(Wait(rows), absl::StatusCode::kFailedPrecondition, "fingerprint");
}

TEST_F(CApiTest, StreamsTokensAndWaitsOnlyAsLongAsTold) {
  Start(HOOKLINE_CAPTURE_STREAM, Request());
  v1::CaptureStarted started;
  ASSERT_EQ(WaitForStarted(&started), HOOKLINE_OK) << error_.message;
  EXPECT_EQ(started.hook_points(1).hook_point(), kMlp);
  Buffers& buffers = NewBuffers(4);
  ASSERT_EQ(Submit(buffers), HOOKLINE_OK);
  int64_t rows[2];
  EXPECT_EQ(Wait(rows, 0), HOOKLINE_TIMEOUT);
  EXPECT_EQ(Wait(rows, 10), HOOKLINE_TIMEOUT);
  const void* message = nullptr;
  size_t bytes = 0;
  EXPECT_EQ(hookline_capture_summary(capture_, &message, &bytes), HOOKLINE_TIMEOUT);
  const uint32_t ids[] = {7, 8, 9, 10, 11};
  const int64_t lengths[] = {2, 3};
  ASSERT_EQ(hookline_capture_write_tokens(capture_, ids, lengths, 2, &error_), HOOKLINE_OK);
  ASSERT_EQ(Wait(rows), HOOKLINE_OK);
  EXPECT_THAT(rows, ElementsAre(4, 4));
  EXPECT_THAT(buffers.token_id, ElementsAre(7, 8, 9, 10));
  EXPECT_THAT(buffers.sequence, ElementsAre(0, 0, 1, 1));
  Buffers& last = NewBuffers(4);
  ASSERT_EQ(Submit(last), HOOKLINE_OK);
  hookline_capture_finish_tokens(capture_);
  ASSERT_EQ(Wait(rows), HOOKLINE_OK);
  EXPECT_THAT(rows, ElementsAre(1, 1));
  EXPECT_EQ(Wait(rows), HOOKLINE_END);
  EXPECT_EQ(hookline_capture_write_tokens(capture_, ids, lengths, 2, &error_), HOOKLINE_END);
}

TEST_F(CApiTest, ACancelEndsAWaitOfAnotherThread) {
  Start(HOOKLINE_CAPTURE_STREAM, Request());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  Buffers& buffers = NewBuffers(4);
  ASSERT_EQ(Submit(buffers), HOOKLINE_OK);
  std::thread canceller([this] { hookline_capture_cancel(capture_); });
  int64_t rows[2];
  ExpectError(Wait(rows, -1), absl::StatusCode::kCancelled, "");
  canceller.join();
  hookline_capture_cancel(capture_);
  ExpectError(Wait(rows), absl::StatusCode::kCancelled, "");
}

TEST_F(CApiTest, AFreeEndsACaptureThatRunsAndItsClientMayBeGone) {
  // The first capture waits for tokens; the second one has rows and waits for a batch to be submitted.
  Start(HOOKLINE_CAPTURE_STREAM, Request());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  {
    Buffers buffers(4);
    ASSERT_EQ(Submit(buffers), HOOKLINE_OK);
    hookline_client_free(std::exchange(client_, nullptr));
    hookline_capture_free(std::exchange(capture_, nullptr));
  }
  EXPECT_TRUE(server_.WaitUntilCancelled());
  ASSERT_EQ(hookline_client_connect(server_.address().c_str(), 0, -1, &client_, &error_), HOOKLINE_OK);
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  hookline_capture_free(std::exchange(capture_, nullptr));
  Start(HOOKLINE_CAPTURE, DatasetRequest());  // freed at once
}

TEST_F(CApiTest, ErrorsOfTheServerComeFromTheFirstWaitingCall) {
  v1::CaptureRequest request;
  request.add_hook_points("nothing");
  Start(HOOKLINE_CAPTURE, request);
  ExpectError(WaitForStarted(), absl::StatusCode::kInvalidArgument, "`nothing` is not a hook point");
  EXPECT_STREQ(error_.field, "");
}

TEST_F(CApiTest, ErrorsThatAreTooLongAreCut) {
  v1::CaptureRequest request;
  request.add_hook_points(std::string(5000, 'h'));
  Start(HOOKLINE_CAPTURE, request);
  ExpectError(WaitForStarted(), absl::StatusCode::kInvalidArgument, std::string(100, 'h'));
  EXPECT_EQ(std::strlen(error_.message), sizeof(error_.message) - 1);
}

TEST_F(CApiTest, SaysWhatIsWrongWithACall) {
  hookline_client* other = nullptr;
  ExpectError(hookline_client_connect("", 0, -1, &other, &error_), absl::StatusCode::kInvalidArgument, "address");
  ExpectError(hookline_client_connect("localhost:1", 1 << 30, -1, &other, &error_), absl::StatusCode::kInvalidArgument,
              "max_receive_bytes: 1073741824");
  ExpectError(hookline_client_connect("localhost:1", 0, 4095, &other, &error_), absl::StatusCode::kInvalidArgument,
              "shared_memory_bytes: 4095");
  ExpectError(hookline_capture_start(client_, 3, "", 0, &capture_, &error_), absl::StatusCode::kInvalidArgument,
              "method: 3");
  Start(HOOKLINE_CAPTURE_STREAM, Request());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  int64_t rows[2];
  ExpectError(Wait(rows), absl::StatusCode::kFailedPrecondition, "no batch is submitted");
  Buffers& buffers = NewBuffers(2);
  buffers.batch.rows = 0;
  ExpectError(Submit(buffers), absl::StatusCode::kInvalidArgument, "rows: 0");
  buffers.batch.rows = 2;
  buffers.batch.position = nullptr;
  ExpectError(Submit(buffers), absl::StatusCode::kInvalidArgument, "sequence, position, token_id");
  buffers.batch.position = buffers.position.data();
  buffers.data[1] = nullptr;
  ExpectError(Submit(buffers), absl::StatusCode::kInvalidArgument, "data[1]: null");
  const uint32_t id = 1;
  const int64_t length = -1;
  ExpectError(hookline_capture_write_tokens(capture_, &id, &length, 1, &error_), absl::StatusCode::kInvalidArgument,
              "lengths[0]: -1");
  ExpectError(hookline_capture_resume(capture_, "", 0, &error_), absl::StatusCode::kFailedPrecondition,
              "has not failed");
}

TEST_F(CApiTest, TakesAThousandBatchesAheadAndNoMore) {
  Start(HOOKLINE_CAPTURE_STREAM, Request());
  ASSERT_EQ(WaitForStarted(), HOOKLINE_OK);
  Buffers& buffers = NewBuffers(1);
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(Submit(buffers), HOOKLINE_OK) << i;
  ExpectError(Submit(buffers), absl::StatusCode::kResourceExhausted, "1024");
}

TEST_F(CApiTest, AnAbsentServerIsUnavailable) {
  hookline_client_free(std::exchange(client_, nullptr));
  std::string address;
  {
    FakeServer gone;
    address = gone.address();
  }
  ASSERT_EQ(hookline_client_connect(address.c_str(), 0, -1, &client_, &error_), HOOKLINE_OK);
  Start(HOOKLINE_CAPTURE, DatasetRequest());
  ExpectError(WaitForStarted(), absl::StatusCode::kUnavailable, "");
  EXPECT_EQ(hookline_capture_resume_token(capture_, nullptr, 0), 0U);
}

TEST_F(CApiTest, AddressesThatCannotBeAreErrorsOfConnect) {
  for (const char* address : {"", "localhost", "http://localhost:7471", "localhost:99999", "::1"}) {
    hookline_client* client = nullptr;
    ExpectError(hookline_client_connect(address, 0, -1, &client, &error_), absl::StatusCode::kInvalidArgument,
                "address: ");
  }
}

TEST_F(CApiTest, TellsItsVersionAndTakesNullToFree) {
  EXPECT_EQ(hookline_abi_version(), HOOKLINE_ABI_VERSION);
  hookline_capture_free(nullptr);
  hookline_client_free(nullptr);
}

}  // namespace
}  // namespace hookline
