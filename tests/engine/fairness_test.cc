// Tests how much of one device each of several clients gets, and how long a client may keep what others wait for.
#include <algorithm>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "server/base/quota_refusal.h"
#include "server/base/retry_after.h"
#include "server/engine/quotas.h"
#include "tests/engine/scheduler_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class FairnessTest : public SchedulerTest {
 protected:
  FairnessTest() {
    options_.slab_count = 1024;
    options_.max_captures = 64;
    options_.default_quotas = {};
    Create();
  }

  static TokenBatch Sequences(int count, size_t length) {
    return Tokens(std::vector<std::vector<uint32_t>>(static_cast<size_t>(count), std::vector<uint32_t>(length, 1)));
  }

  Scheduler::Admitted AdmitFor(const ClientIdentity& client, CapturePlan plan) {
    Scheduler::Admitted admitted = Admit(std::move(plan), client);
    clients_[admitted.id] = client.name;
    return admitted;
  }

  absl::Status Refusal(const ClientIdentity& client, CapturePlan plan) {
    return scheduler_->Admit(model_id_, std::move(plan), client, {}).status();
  }

  // Runs at most `count` batches. Returns how many tokens of each client they had.
  std::map<std::string, int64_t> RunBatches(int count) {
    std::map<std::string, int64_t> tokens;
    for (int i = 0; i < count; ++i) {
      std::optional<Batch> batch = NextBatch();
      if (!batch.has_value()) break;
      std::map<FlowId, std::string> clients;
      for (const Batch::Member& member : batch->members) clients[member.flow] = clients_[member.recipient.capture];
      for (const BatchItem& item : batch->items) tokens[clients[item.flow]] += item.sequence.length;
      Run(*batch);
      Deliver(*batch);
    }
    return tokens;
  }

  static ClientIdentity Weighted(const std::string& name, int64_t weight) {
    ClientIdentity client(name);
    client.weight = weight;
    return client;
  }

  static bool HasStarted(const Scheduler::Admitted& admitted) {
    const std::optional<CaptureEvent> event = admitted.events->Next();
    return event.has_value() && std::holds_alternative<CaptureStarted>(*event);
  }

  // Returns the status of the final event, if there is one.
  static std::optional<absl::Status> EndOf(const Scheduler::Admitted& admitted) {
    while (std::optional<CaptureEvent> event = admitted.events->Next()) {
      if (const auto* ended = std::get_if<CaptureEnded>(&*event)) return ended->status;
    }
    return std::nullopt;
  }

  std::map<CaptureId, std::string> clients_;
};

TEST_F(FairnessTest, AClientWithSixteenCapturesGetsNoMoreThanAnotherWithOne) {
  for (int i = 0; i < 16; ++i) AdmitFor("many", Plan(Sequences(200, 16)));
  AdmitFor("one", Plan(Sequences(2000, 16)));
  const auto tokens = RunBatches(200);
  EXPECT_NEAR(static_cast<double>(tokens.at("many")), static_cast<double>(tokens.at("one")), 64.0 * 2);
}

TEST_F(FairnessTest, ClientsShareByTheirWeights) {
  AdmitFor(Weighted("heavy", 3), Plan(Sequences(2000, 16)));
  AdmitFor(Weighted("light", 1), Plan(Sequences(2000, 16)));
  const auto tokens = RunBatches(200);
  EXPECT_NEAR(static_cast<double>(tokens.at("heavy")), 3.0 * static_cast<double>(tokens.at("light")), 64.0 * 4);
}

TEST_F(FairnessTest, AClientsCapturesShareWhatItGets) {
  const auto first = AdmitFor("many", Plan(Sequences(500, 16)));
  const auto second = AdmitFor("many", Plan(Sequences(500, 16)));
  clients_[first.id] = "first";
  clients_[second.id] = "second";
  AdmitFor("other", Plan(Sequences(2000, 16)));
  const auto tokens = RunBatches(200);
  EXPECT_NEAR(static_cast<double>(tokens.at("first")), static_cast<double>(tokens.at("second")), 64.0 * 2);
}

TEST_F(FairnessTest, NothingIsLeftIdleForAClientThatHasNothingToRun) {
  AdmitFor("waits", Plan(StreamedSource{}));
  AdmitFor("works", Plan(Sequences(100, 16)));
  clock_.Advance(kDelay);
  EXPECT_EQ(RunBatches(10).at("works"), 10 * 64);
}

TEST_F(FairnessTest, SmallCapturesOfAClientThatHasHadItsShareWaitLikeOthers) {
  for (const char* bulk : {"bulk1", "bulk2"}) AdmitFor(bulk, Plan(Sequences(3000, 16)));
  std::map<std::string, int64_t> all;
  std::vector<Scheduler::Admitted> small;
  for (int round = 0; round < 600; ++round) {
    while (small.size() < 8) small.push_back(AdmitFor("small", Plan(Sequences(1, 2))));
    for (const auto& [client, tokens] : RunBatches(1)) all[client] += tokens;
    small.erase(std::remove_if(small.begin(), small.end(), HasEnded), small.end());
  }
  EXPECT_NEAR(static_cast<double>(all["bulk1"]), static_cast<double>(all["bulk2"]), 64.0 * 4);
  EXPECT_LE(all["small"], all["bulk1"]);
}

TEST_F(FairnessTest, OneClientHoldsAQuarterOfTheCapturesAndTheRestOfItsCapturesWait) {
  std::vector<Scheduler::Admitted> admitted;
  for (int i = 0; i < 17; ++i) admitted.push_back(AdmitFor("greedy", Plan(StreamedSource{})));
  EXPECT_TRUE(HasStarted(admitted[15]));
  EXPECT_FALSE(HasStarted(admitted[16]));
  EXPECT_EQ(scheduler_->CapturesAhead(admitted[16].id), 0);
  EXPECT_TRUE(HasStarted(AdmitFor("other", Plan(StreamedSource{})))) << "its waiting keeps nobody else out";
  scheduler_->Cancel(admitted[0].id);
  admitted[0].events->Close();
  NextBatch();  // executors admit
  EXPECT_TRUE(HasStarted(admitted[16]));
}

TEST_F(FairnessTest, MetricsSeeHowMuchWaits) {
  std::vector<Scheduler::Admitted> admitted;
  for (int i = 0; i < 18; ++i) admitted.push_back(AdmitFor("greedy", Plan(Sequences(2, 16))));
  EngineSnapshot snapshot;
  scheduler_->Snapshot(&snapshot);
  ASSERT_EQ(snapshot.models.size(), 1);
  EXPECT_EQ(snapshot.models[0].captures_queued, 2);
  EXPECT_EQ(snapshot.captures_queued, 2);
  EXPECT_EQ(snapshot.models[0].tokens_queued, 18 * 2 * 16);
}

TEST_F(FairnessTest, AFullQueueSaysWhenToTryAgain) {
  for (int i = 0; i < 32; ++i) AdmitFor("greedy", Plan(StreamedSource{}));
  const absl::Status status = Refusal("greedy", Plan(StreamedSource{}));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("16 captures that wait, of at most 16 (quota `waiting`)"));
  EXPECT_TRUE(RetryAfterOf(status).has_value());
}

TEST_F(FairnessTest, AQuotaOfCapturesIsNamedWithTheUse) {
  ClientIdentity client("alice");
  client.quotas.captures = 2;
  AdmitFor(client, Plan(StreamedSource{}));
  AdmitFor(client, Plan(StreamedSource{}));
  const absl::Status refusal = Refusal(client, Plan(StreamedSource{}));
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("alice has 2 captures, of at most 2 (quota `captures`)"));
  EXPECT_EQ(RefusingQuota(refusal), "captures") << "metrics count refusals by it";
}

TEST_F(FairnessTest, AQuotaOfRowsIsNamedWithTheUse) {
  ClientIdentity client("alice");
  client.quotas.rows = 10;
  EXPECT_THAT(std::string(Refusal(client, Plan(Sequences(1, 11))).message()), HasSubstr("(quota `rows`)"));
  AdmitFor(client, Plan(Sequences(1, 10)));
}

TEST_F(FairnessTest, QuotasOfSlabsAndFeedsAreNamedWithTheUse) {
  ClientShare share;
  share.identity = ClientIdentity("alice");
  share.identity.quotas.slabs = 3;
  share.identity.quotas.feeds = 1;
  CapturePlan plan = Plan(StreamedSource{});
  plan.group_slabs = 2;
  const auto check = [&](const ClientUse& use) {
    return CheckQuotas(share, use, plan, /*rows=*/1, options_, clock_.Now());
  };
  EXPECT_EQ(RefusingQuota(check({})), "slabs");
  EXPECT_THAT(std::string(check({}).message()), HasSubstr("needs 4 slabs; alice may have 3 (quota `slabs`)"));
  plan.group_slabs = 1;
  plan.feed.emplace();
  EXPECT_TRUE(check({}).ok());
  ClientUse member;
  member.feeds = 1;
  EXPECT_EQ(RefusingQuota(check(member)), "feeds");
  EXPECT_THAT(std::string(check(member).message()), HasSubstr("alice has 1 captures in feeds, of at most 1"));
}

TEST_F(FairnessTest, ARateOfTokensHoldsCapturesBackAndRefusesNewOnesForAsLong) {
  ClientIdentity client("alice");
  client.quotas.tokens_per_second = 64;
  client.quotas.burst_tokens = 128;
  AdmitFor(client, Plan(Sequences(400, 16)));
  EXPECT_EQ(RunBatches(100).at("alice"), 128) << "the burst";
  EXPECT_GT(look_again_, clock_.Now());
  const absl::Status status = Refusal(client, Plan(Sequences(1, 16)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(RetryAfterOf(status).has_value());
  EXPECT_GT(*RetryAfterOf(status), absl::ZeroDuration());
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(RunBatches(100).at("alice"), 64) << "what a second brings";
  clock_.Advance(absl::Seconds(1));
  AdmitFor(client, Plan(Sequences(1, 16)));
}

TEST_F(FairnessTest, WindowsShrinkToTwoRowGroupsWhileSomebodyWaits) {
  options_.slab_count = 16;
  options_.window_slabs = 16;
  options_.default_quotas.slabs = 16;
  Create();
  CapturePlan plan = Plan(StreamedSource{});
  plan.window_slabs = 16;
  const int64_t least = 2 * plan.group_slabs;
  ASSERT_LE(2 * least, 16);
  const auto first = AdmitFor("first", std::move(plan));
  EXPECT_EQ(scheduler_->ListCaptures("admin")[0].slabs, 16);
  EXPECT_TRUE(HasStarted(AdmitFor("second", Plan(StreamedSource{}))));
  EXPECT_EQ(scheduler_->ListCaptures("admin")[0].slabs, least);
}

class StallTest : public FairnessTest {
 protected:
  StallTest() {
    options_.slab_count = 16;
    options_.max_captures = 2;
    options_.default_quotas.captures = options_.default_quotas.waiting = options_.default_quotas.slabs = 16;
    Create();
  }
};

TEST_F(StallTest, ACaptureWhoseClientSendsNothingEndsWhileOthersWait) {
  const auto silent = AdmitFor("silent", Plan(StreamedSource{}));
  ASSERT_TRUE(HasStarted(silent));
  const auto busy = AdmitFor("busy", Plan(StreamedSource{}));
  ASSERT_TRUE(HasStarted(busy));
  const auto newcomer = AdmitFor("newcomer", Plan(Sequences(1, 4)));
  NextBatch();
  EXPECT_EQ(scheduler_->ListCaptures("admin").back().captures_ahead, 0);
  clock_.Advance(options_.stall_timeout - absl::Seconds(1));
  ASSERT_TRUE(scheduler_->AddSequences(busy.id, Sequences(1, 4)).ok());
  NextBatch();
  EXPECT_FALSE(HasStarted(newcomer));
  clock_.Advance(absl::Seconds(1));
  NextBatch();
  const std::optional<absl::Status> end = EndOf(silent);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->code(), absl::StatusCode::kUnavailable) << *end;
  EXPECT_THAT(std::string(end->message()), HasSubstr("--stall-timeout"));
  EXPECT_TRUE(HasStarted(newcomer));
}

TEST_F(StallTest, WithoutAnyoneWaitingItStays) {
  const auto silent = AdmitFor("silent", Plan(StreamedSource{}));
  ASSERT_TRUE(HasStarted(silent));
  clock_.Advance(absl::Hours(10));
  NextBatch();
  EXPECT_FALSE(EndOf(silent).has_value());
}

TEST_F(StallTest, AClientThatDoesNotReadLosesWhatItHoldsAndThenItsCall) {
  bool expired = false;
  CaptureCallbacks callbacks;
  callbacks.on_expired = [&] { expired = true; };
  const auto deaf = Admit(Plan(StreamedSource{}), "deaf", callbacks);  // never takes its first event
  const auto busy = AdmitFor("busy", Plan(StreamedSource{}));
  ASSERT_TRUE(HasStarted(busy));
  const auto newcomer = AdmitFor("newcomer", Plan(Sequences(1, 4)));
  NextBatch();
  clock_.Advance(options_.stall_timeout);
  ASSERT_TRUE(scheduler_->AddSequences(busy.id, Sequences(1, 4)).ok());
  NextBatch();
  EXPECT_TRUE(HasStarted(newcomer));
  EXPECT_FALSE(expired);
  clock_.Advance(options_.stall_timeout);
  NextBatch();
  EXPECT_TRUE(expired);
}

TEST_F(StallTest, OperatorsSeeWhoWaitsForWhatAndEndCaptures) {
  const auto capture = AdmitFor("alice", Plan(StreamedSource{}));
  ASSERT_TRUE(HasStarted(capture));
  clock_.Advance(absl::Seconds(5));
  ClientIdentity bob("bob");
  bob.is_admin = false;
  EXPECT_TRUE(scheduler_->ListCaptures(bob).empty());
  EXPECT_EQ(scheduler_->StopByOperator(capture.id, bob).code(), absl::StatusCode::kNotFound);
  const std::vector<CaptureStatus> captures = scheduler_->ListCaptures("admin");
  ASSERT_EQ(captures.size(), 1u);
  EXPECT_EQ(captures[0].client, "alice");
  EXPECT_EQ(captures[0].source, "stream");
  EXPECT_EQ(captures[0].waits_for, CaptureWait::kSequences);
  EXPECT_EQ(captures[0].age, absl::Seconds(5));
  ASSERT_TRUE(scheduler_->StopByOperator(capture.id, "admin").ok());
  EXPECT_EQ(EndOf(capture)->code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace hookline
