#include "client/cpp/shared_capture.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "tests/cli/fake_server.h"

namespace hookline::client {
namespace {

using cli::FakeServer;
using cli::FakeValue;
using cli::kFakeWidth;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kResid[] = "blocks.0.hook_resid_post";
constexpr char kMlp[] = "blocks.1.hook_mlp_out";
constexpr int kSequences = 40;

int LengthOf(int sequence) { return 1 + sequence % 7; }

v1::CaptureRequest Request() {
  v1::CaptureRequest request;
  request.add_hook_points(kResid);
  request.add_hook_points(kMlp);
  request.set_provenance(true);
  return request;
}

struct Row {
  int64_t sequence;
  int32_t position;
  float value;
  bool operator==(const Row& other) const {
    return sequence == other.sequence && position == other.position && value == other.value;
  }
};

using Rows = std::map<std::string, std::vector<Row>>;

class SharedCaptureTest : public testing::Test {
 protected:
  std::vector<NamedServer> Servers(absl::Duration answer = kAnswerTime) {
    ClientOptions options;
    options.shared_memory_bytes = 0;
    options.rpc_timeout = answer;
    std::vector<NamedServer> servers;
    for (const std::string& address : {first_.address(), second_.address()}) {
      servers.push_back({address, *Client::Connect(address, options)});
    }
    return servers;
  }

  // A block has a few sequences.
  static SharingOptions Small(absl::Duration silence = kSilence) {
    SharingOptions options;
    options.block_tokens = 16;
    options.silence = silence;
    return options;
  }

  // Gives kSequences sequences. Before the sequence with the index of an event, it calls the event.
  static NextSequence Source(std::map<int, std::function<void()>> events = {}) {
    return [events = std::move(events), index = 0](v1::TokenSequence* sequence) mutable {
      if (const auto event = events.find(index); event != events.end()) event->second();
      if (index == kSequences) return absl::StatusOr<bool>(false);
      for (int i = 0; i < LengthOf(index); ++i) sequence->add_ids(static_cast<uint32_t>(index + i));
      ++index;
      return absl::StatusOr<bool>(true);
    };
  }

  // Returns the rows that one server would give, at most `budgets` of each hook point.
  static Rows Expected(const std::map<std::string, size_t>& budgets = {}) {
    Rows rows;
    for (const std::string name : {kResid, kMlp}) {
      const auto budget = budgets.find(name);
      for (int sequence = 0; sequence < kSequences; ++sequence) {
        for (int i = 0; i < LengthOf(sequence); ++i) {
          if (budget != budgets.end() && rows[name].size() == budget->second) break;
          rows[name].push_back({sequence, i, FakeValue(name, static_cast<uint32_t>(sequence + i), kFakeWidth - 1)});
        }
      }
    }
    return rows;
  }

  // Takes all rows, and checks that they are aligned and numbered.
  static absl::StatusOr<Rows> Read(SharedCapture& capture) {
    Rows rows;
    while (true) {
      absl::StatusOr<std::optional<Chunk>> chunk = capture.Next();
      if (!chunk.ok()) return chunk.status();
      if (!chunk->has_value()) return rows;
      const v1::ActivationChunk& header = (*chunk)->header();
      std::vector<Row>& of_point = rows[header.hook_point()];
      EXPECT_EQ(header.first_row(), static_cast<int64_t>(of_point.size()));
      EXPECT_EQ(header.hook_point(), capture.started().hook_points((*chunk)->hook_point_index()).hook_point());
      for (int row = 0; row < header.rows(); ++row) {
        float values[kFakeWidth];
        (*chunk)->CopyData(row * static_cast<int64_t>(sizeof(values)), sizeof(values), values);
        of_point.push_back({header.sequence(row), header.position(row), values[kFakeWidth - 1]});
      }
    }
  }

  absl::StatusOr<Rows> Run(const v1::CaptureRequest& request, NextSequence source) {
    SharedCapture capture(Servers(), request, std::move(source), Small());
    absl::Status status = capture.Start();
    if (!status.ok()) return status;
    absl::StatusOr<Rows> rows = Read(capture);
    reruns_ = capture.reruns();
    summary_ = capture.summary();
    return rows;
  }

  FakeServer first_, second_;
  int reruns_ = 0;
  v1::CaptureSummary summary_;
};

TEST_F(SharedCaptureTest, RowsAreThoseOfOneServerInTheOrderOfTheSource) {
  const absl::StatusOr<Rows> rows = Run(Request(), Source());
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected());
  EXPECT_EQ(reruns_, 0);
  EXPECT_EQ(summary_.stop_reason(), v1::STOP_REASON_SOURCE_ENDED);
  EXPECT_EQ(summary_.hook_points(1).rows(), static_cast<int64_t>(rows->at(kMlp).size()));
  EXPECT_EQ(summary_.hook_points(1).statistics_rows(), summary_.hook_points(1).rows());
}

TEST_F(SharedCaptureTest, BudgetsAreExactAndMayDiffer) {
  v1::CaptureRequest request = Request();
  request.set_max_activations(77);
  (*request.mutable_max_activations_by_hook_point())[kMlp] = 9;
  const absl::StatusOr<Rows> rows = Run(request, Source());
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected({{kResid, 77}, {kMlp, 9}}));
  EXPECT_EQ(summary_.stop_reason(), v1::STOP_REASON_BUDGET);
  EXPECT_EQ(summary_.hook_points(0).rows(), 77);
  EXPECT_EQ(summary_.hook_points(1).rows(), 9);
}

TEST_F(SharedCaptureTest, BudgetsAreExactWhereOnlyServersKnowHowManyRowsABlockHas) {
  v1::CaptureRequest request = Request();
  request.mutable_selection()->set_position_end(100);
  request.set_max_activations(78);
  (*request.mutable_max_activations_by_hook_point())[kResid] = 50;
  const absl::StatusOr<Rows> rows = Run(request, Source());
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected({{kResid, 50}, {kMlp, 78}}));
}

TEST_F(SharedCaptureTest, WhatTheSourceFailsOfBehindTheLastBudgetDoesNotMatter) {
  v1::CaptureRequest request = Request();
  request.set_max_activations(20);
  const absl::StatusOr<Rows> rows = Run(request, [index = 0](v1::TokenSequence* sequence) mutable {
    if (index++ == 9) return absl::StatusOr<bool>(absl::DataLossError("torn"));
    for (int i = 0; i < 4; ++i) sequence->add_ids(1);
    return absl::StatusOr<bool>(true);
  });
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_THAT(rows->at(kMlp), SizeIs(20));
}

TEST_F(SharedCaptureTest, ABlockOfAServerThatBreaksRunsElsewhereWithoutLossOrRepeats) {
  first_.BreakAfter(1000);  // for the call that asks for the grant
  for (FakeServer* server : {&first_, &second_}) {
    server->BreakAfter(3);
    server->ShutDownAfter(1);
  }
  const absl::StatusOr<Rows> rows = Run(Request(), Source());
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected());
  EXPECT_GE(reruns_, 1);
}

TEST_F(SharedCaptureTest, AServerThatHangsIsGivenUpAndItsBlocksRunElsewhere) {
  SharedCapture capture(Servers(/*answer=*/absl::Milliseconds(300)), Request(),
                        Source({{5, [&] { second_.SetFrozen(true); }}}), Small(/*silence=*/absl::Milliseconds(200)));
  ASSERT_TRUE(capture.Start().ok());
  const absl::StatusOr<Rows> rows = Read(capture);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected());
}

TEST_F(SharedCaptureTest, AServerThatIsOnlySlowIsNotGivenUp) {
  // Both are silent for longer than `silence`, but answer when they are asked.
  absl::Mutex mutex;
  bool is_asked = false;
  for (FakeServer* server : {&first_, &second_}) {
    server->OnAskedWhileFrozen([&] {
      absl::MutexLock lock(&mutex);
      is_asked = true;
    });
  }
  std::thread slow;
  const auto freeze = [&] {
    first_.SetFrozen(true);
    second_.SetFrozen(true);
    slow = std::thread([&] {
      {
        absl::MutexLock lock(&mutex);
        EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&is_asked), absl::Seconds(20)));
      }
      first_.SetFrozen(false);
      second_.SetFrozen(false);
    });
  };
  SharedCapture capture(Servers(), Request(), Source({{5, freeze}}), Small(/*silence=*/absl::Milliseconds(20)));
  ASSERT_TRUE(capture.Start().ok());
  const absl::StatusOr<Rows> rows = Read(capture);
  slow.join();
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected());
  EXPECT_EQ(capture.reruns(), 0);
}

TEST_F(SharedCaptureTest, AServerThatIsAwayIsReportedAndUsedOnceItIsBack) {
  second_.SetAway(true);
  bool was_used = false;
  const auto come_back = [&] {
    second_.SetAway(false);
    was_used = second_.WaitUntilStarted();
    first_.SetFrozen(false);
  };
  // While the first server is frozen, blocks are left for the second.
  SharedCapture capture(Servers(), Request(), Source({{0, [&] { first_.SetFrozen(true); }}, {20, come_back}}), Small());
  ASSERT_TRUE(capture.Start().ok());
  EXPECT_THAT(capture.away(), ElementsAre(HasSubstr(second_.address())));
  const absl::StatusOr<Rows> rows = Read(capture);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(*rows, Expected());
  EXPECT_TRUE(was_used);
}

TEST_F(SharedCaptureTest, AServerOfAnotherModelIsRefusedByBothFingerprints) {
  second_.SetFingerprint("another");
  const absl::Status status = Run(Request(), Source()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr(first_.address()), HasSubstr(second_.address())));
  EXPECT_THAT(status.message(), AllOf(HasSubstr("00112233"), HasSubstr("another")));
}

TEST_F(SharedCaptureTest, AServerThatComesBackWithAnotherModelIsRefused) {
  const auto change = [this] {
    first_.SetAway(true);  // so that the other one is used
    second_.SetFingerprint("another");
  };
  const absl::Status status = Run(Request(), Source({{4, change}})).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("another"));
}

TEST_F(SharedCaptureTest, WithNoServerTheErrorComesAtOnce) {
  first_.SetAway(true);
  second_.SetAway(true);
  EXPECT_TRUE(absl::IsUnavailable(Run(Request(), Source()).status()));
}

TEST_F(SharedCaptureTest, WhatNeedsOneServerIsRefusedBeforeAnyIsAsked) {
  v1::CaptureRequest feed = Request(), recorded = Request(), sampled = Request();
  feed.mutable_feed()->set_name("shared");
  recorded.set_record_as("run");
  sampled.mutable_selection()->set_sample_rows(3);
  EXPECT_THAT(Run(feed, nullptr).status().message(), HasSubstr("a feed is shared by captures on one server"));
  EXPECT_THAT(Run(recorded, Source()).status().message(), HasSubstr("is written to one server's disk"));
  EXPECT_THAT(Run(sampled, Source()).status().message(), HasSubstr("selection.sample_rows"));
  EXPECT_THAT(first_.requests(), IsEmpty());
}

TEST_F(SharedCaptureTest, ErrorsOfTheSourceComeAfterTheRowsBeforeIt) {
  SharedCapture capture(
      Servers(), Request(),
      [next = Source(), index = 0](v1::TokenSequence* sequence) mutable {
        return index++ == kSequences ? absl::StatusOr<bool>(absl::DataLossError("torn")) : next(sequence);
      },
      Small());
  ASSERT_TRUE(capture.Start().ok());
  size_t rows = 0;
  absl::Status status;
  while (status.ok()) {
    const absl::StatusOr<std::optional<Chunk>> chunk = capture.Next();
    status = chunk.status();
    if (chunk.ok()) rows += static_cast<size_t>((*chunk)->header().rows());
  }
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(rows, Expected()[kResid].size() + Expected()[kMlp].size());
}

TEST_F(SharedCaptureTest, AnErrorOfAServerNamesTheServer) {
  v1::CaptureRequest request = Request();
  request.add_hook_points("nowhere");
  const absl::Status status = Run(request, Source()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(status.message(), AnyOf(HasSubstr(first_.address()), HasSubstr(second_.address())));
}

// Gives sequences of 8 ids without end, and notifies when more than `most` were asked for.
NextSequence Endless(int most, absl::Notification& too_many) {
  return [most, &too_many, asked = 0](v1::TokenSequence* sequence) mutable {
    for (int i = 0; i < 8; ++i) sequence->add_ids(1);
    if (++asked == most + 1) too_many.Notify();
    return absl::StatusOr<bool>(true);
  };
}

// A source that nothing holds back needs far less than this.
constexpr absl::Duration kWhile = absl::Milliseconds(200);

TEST_F(SharedCaptureTest, ASourceIsNotReadFarAheadOfWhatIsTaken) {
  // Two sequences make a block. What is read ahead is the window's blocks, the block that waits for room, and the
  // sequence that did not fit into that block.
  const int blocks = static_cast<int>(2 * kServerBlocks * kWindowFactor) + 1;
  absl::Notification too_many;
  SharedCapture capture(Servers(), Request(), Endless(2 * blocks + 1, too_many), Small());
  ASSERT_TRUE(capture.Start().ok());
  ASSERT_TRUE(capture.Next().ok());
  EXPECT_FALSE(too_many.WaitForNotificationWithTimeout(kWhile));
}

TEST_F(SharedCaptureTest, BlocksThatAreLargeAreOpenOneByOne) {
  SharingOptions options = Small();
  options.reorder_bytes = 1;
  absl::Notification too_many;
  SharedCapture capture(Servers(), Request(), Endless(2 * 2 + 1, too_many), options);
  ASSERT_TRUE(capture.Start().ok());
  ASSERT_TRUE(capture.Next().ok());
  EXPECT_FALSE(too_many.WaitForNotificationWithTimeout(kWhile));
}

TEST_F(SharedCaptureTest, CancelEndsItWhileTheSourceWaits) {
  absl::Notification waits, released;
  SharedCapture capture(
      Servers(), Request(),
      [&](v1::TokenSequence*) {
        if (!waits.HasBeenNotified()) waits.Notify();
        released.WaitForNotification();
        return absl::StatusOr<bool>(false);
      },
      Small());
  ASSERT_TRUE(capture.Start().ok());
  waits.WaitForNotification();
  capture.Cancel();
  EXPECT_TRUE(absl::IsCancelled(capture.Next().status()));
  released.Notify();
}

}  // namespace
}  // namespace hookline::client
