#include "client/cpp/resumable_capture.h"

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/cpp/client.h"
#include "client/cpp/merge_summaries.h"
#include "gmock/gmock.h"
#include "tests/cli/fake_server.h"

namespace hookline::client {
namespace {

using ::testing::HasSubstr;

constexpr char kResid[] = "blocks.0.hook_resid_post";
constexpr char kMlp[] = "blocks.1.hook_mlp_out";
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(ReconnectDelay, DoublesAndIsBounded) {
  EXPECT_EQ(ReconnectDelay(1), absl::Milliseconds(250));
  EXPECT_EQ(ReconnectDelay(2), absl::Milliseconds(500));
  EXPECT_EQ(ReconnectDelay(kMaxReconnects), absl::Seconds(8));
  EXPECT_EQ(ReconnectDelay(std::numeric_limits<int>::max()), absl::Seconds(8));
}

// Returns a server's summary of these rows of two values, as engine/row_statistics.h counts them.
v1::CaptureSummary SummaryOf(const std::vector<std::vector<double>>& rows) {
  double norms = 0, sum = 0, squares = 0;
  int64_t finite = 0, nan = 0, infinite = 0;
  for (const std::vector<double>& row : rows) {
    double row_squares = 0;
    for (double value : row) {
      nan += std::isnan(value);
      infinite += std::isinf(value);
      if (!std::isfinite(value)) continue;
      ++finite;
      sum += value;
      row_squares += value * value;
    }
    norms += std::sqrt(row_squares);
    squares += row_squares;
  }
  v1::CaptureSummary summary;
  v1::HookPointSummary& point = *summary.add_hook_points();
  point.set_statistics_rows(static_cast<int64_t>(rows.size()));
  point.set_nan_count(nan);
  point.set_infinity_count(infinite);
  if (!rows.empty()) {
    point.set_mean_row_norm(finite == 0 ? kNaN : norms / static_cast<double>(rows.size()));
    point.set_mean(finite == 0 ? kNaN : sum / static_cast<double>(finite));
    point.set_rms(finite == 0 ? kNaN : std::sqrt(squares / static_cast<double>(finite)));
  }
  return summary;
}

void ExpectNear(double value, double expected) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(value)) << value;
  } else {
    EXPECT_NEAR(value, expected, 1e-12);
  }
}

TEST(MergeSummaries, GivesTheStatisticsOfAllRowsWhereverTheyAreCut) {
  const double inf = std::numeric_limits<double>::infinity();
  v1::CaptureStarted started;
  started.add_hook_points()->set_width(2);
  const std::vector<std::vector<std::vector<double>>> cases = {
      {{1, 2}, {-3, 4.5}, {0, 7}, {2.25, -8}},
      {{1, kNaN}, {-3, 4.5}, {inf, 7}, {kNaN, -inf}},
      {{kNaN, kNaN}, {inf, kNaN}},
      {{kNaN, kNaN}, {1, 2}},
  };
  for (const auto& rows : cases) {
    const v1::HookPointSummary whole = SummaryOf(rows).hook_points(0);
    for (size_t cut = 0; cut <= rows.size(); ++cut) {
      const auto middle = rows.begin() + static_cast<std::ptrdiff_t>(cut);
      const v1::HookPointSummary merged =
          MergeSummaries(started, SummaryOf({rows.begin(), middle}), SummaryOf({middle, rows.end()})).hook_points(0);
      EXPECT_EQ(merged.statistics_rows(), whole.statistics_rows());
      EXPECT_EQ(merged.nan_count(), whole.nan_count());
      EXPECT_EQ(merged.infinity_count(), whole.infinity_count());
      ExpectNear(merged.mean_row_norm(), whole.mean_row_norm());
      ExpectNear(merged.mean(), whole.mean());
      ExpectNear(merged.rms(), whole.rms());
    }
  }
}

TEST(MergeSummaries, AddsCountsAndTimesAndKeepsHowTheLastCallEnded) {
  v1::CaptureSummary before, now;
  before.set_stop_reason(v1::STOP_REASON_SHUTTING_DOWN);
  before.set_sequences(3);
  before.set_tokens(30);
  before.set_batches(1);
  before.set_mean_batch_fill(0.5);
  before.mutable_timing()->set_total_seconds(2);
  now.set_stop_reason(v1::STOP_REASON_BUDGET);
  now.set_sequences(4);
  now.set_tokens(50);
  now.set_batches(3);
  now.set_mean_batch_fill(1);
  now.mutable_timing()->set_total_seconds(0.5);
  now.set_resume_token("now");
  const v1::CaptureSummary merged = MergeSummaries(v1::CaptureStarted(), before, now);
  EXPECT_EQ(merged.stop_reason(), v1::STOP_REASON_BUDGET);
  EXPECT_EQ(merged.sequences(), 7);
  EXPECT_EQ(merged.tokens(), 80);
  EXPECT_EQ(merged.batches(), 4);
  EXPECT_DOUBLE_EQ(merged.mean_batch_fill(), 0.875);
  EXPECT_DOUBLE_EQ(merged.timing().total_seconds(), 2.5);
  EXPECT_EQ(merged.resume_token(), "now");
}

class ResumableCaptureTest : public ::testing::Test {
 protected:
  ResumableCaptureTest() : client_(*Client::Connect(server_.address())) {
    request_.add_hook_points(kResid);
    request_.add_hook_points(kMlp);
    request_.mutable_dataset()->set_name("counting");
  }

  std::unique_ptr<ResumableCapture> Start() {
    auto capture = std::make_unique<ResumableCapture>([this](const std::string& token) {
      v1::CaptureRequest request = request_;
      request.set_resume_token(token);
      return client_->Capture(request);
    });
    capture->Call();
    return capture;
  }

  // Takes events until the call ends. Returns the call's status.
  static absl::Status ReadCall(ResumableCapture& capture, int64_t* rows) {
    while (true) {
      absl::StatusOr<std::optional<CaptureEvent>> event = capture.Next();
      if (!event.ok()) return event.status();
      if (!event->has_value()) return absl::OkStatus();
      if (const auto* chunk = std::get_if<Chunk>(&**event)) *rows += chunk->header().rows();
    }
  }

  cli::FakeServer server_;
  std::unique_ptr<Client> client_;
  v1::CaptureRequest request_;
};

TEST_F(ResumableCaptureTest, BringsEachRowOnceAndTheStatisticsOfAllCalls) {
  server_.ShutDownAfter(3);
  server_.ShutDownAfter(0);
  server_.ShutDownAfter(6);
  const std::unique_ptr<ResumableCapture> capture = Start();
  int64_t rows = 0;
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = ReadCall(*capture, &rows);
    ASSERT_TRUE(capture->NextReconnect(status).has_value()) << status;
    capture->Call();
  }
  ASSERT_EQ(ReadCall(*capture, &rows), absl::OkStatus());
  EXPECT_EQ(rows, 30);
  EXPECT_EQ(capture->reconnects(), 3);
  const v1::CaptureSummary summary = *capture->summary();
  EXPECT_EQ(summary.stop_reason(), v1::STOP_REASON_SOURCE_ENDED);
  EXPECT_EQ(summary.batches(), 4);
  for (const v1::HookPointSummary& point : summary.hook_points()) {
    EXPECT_EQ(point.rows(), 15);
    EXPECT_EQ(point.statistics_rows(), 15);
    EXPECT_EQ(point.nan_count(), 4 * 3);
  }
}

TEST_F(ResumableCaptureTest, SaysHowManyRowsTheStatisticsCoverWhereACallWasCutOff) {
  server_.BreakAfter(4);
  const std::unique_ptr<ResumableCapture> capture = Start();
  int64_t rows = 0;
  EXPECT_EQ(ReadCall(*capture, &rows).code(), absl::StatusCode::kUnavailable);
  const int64_t cut_off = rows;
  EXPECT_FALSE(capture->summary().has_value());
  capture->Call();
  ASSERT_EQ(ReadCall(*capture, &rows), absl::OkStatus());
  const v1::CaptureSummary summary = *capture->summary();
  EXPECT_EQ(summary.hook_points(0).statistics_rows() + summary.hook_points(1).statistics_rows(), rows - cut_off);
}

TEST_F(ResumableCaptureTest, GivesUpAfterAttemptsWithoutARowAndCountsAnewAfterOne) {
  for (int i = 0; i < kMaxReconnects; ++i) server_.BreakAfter(0);
  server_.BreakAfter(1);
  for (int i = 0; i < kMaxReconnects; ++i) server_.BreakAfter(0);
  const std::unique_ptr<ResumableCapture> capture = Start();
  int64_t rows = 0;
  for (int round = 0; round < 2; ++round) {
    for (int attempt = 1; attempt <= kMaxReconnects; ++attempt) {
      const std::optional<Reconnect> reconnect = capture->NextReconnect(ReadCall(*capture, &rows));
      ASSERT_TRUE(reconnect.has_value());
      EXPECT_EQ(reconnect->attempt, attempt);
      EXPECT_EQ(reconnect->delay, ReconnectDelay(attempt));
      capture->Call();
    }
    EXPECT_EQ(rows > 0, round == 1);
  }
}

TEST_F(ResumableCaptureTest, DoesNotCallAgainWhereNothingWasGrantedOrTheErrorStays) {
  request_.set_hook_points(0, "no_such");
  const std::unique_ptr<ResumableCapture> refused = Start();
  int64_t rows = 0;
  const absl::Status status = ReadCall(*refused, &rows);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(refused->NextReconnect(status).has_value());
  EXPECT_FALSE(refused->NextReconnect(absl::UnavailableError("no server")).has_value());
}

TEST_F(ResumableCaptureTest, OtherWeightsAfterAReconnectEndIt) {
  server_.BreakAfter(3);
  const std::unique_ptr<ResumableCapture> capture = Start();
  int64_t rows = 0;
  EXPECT_EQ(ReadCall(*capture, &rows).code(), absl::StatusCode::kUnavailable);
  server_.SetFingerprint("another");
  capture->Call();
  const absl::Status status = ReadCall(*capture, &rows);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fingerprint"));
  EXPECT_FALSE(capture->NextReconnect(status).has_value());
}

TEST_F(ResumableCaptureTest, ACancelReachesTheCallsToComeToo) {
  server_.BreakAfter(3);
  const std::unique_ptr<ResumableCapture> capture = Start();
  int64_t rows = 0;
  EXPECT_EQ(ReadCall(*capture, &rows).code(), absl::StatusCode::kUnavailable);
  capture->Cancel();
  capture->Call();
  EXPECT_EQ(ReadCall(*capture, &rows).code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace hookline::client
