// A capture on several replicas gives exactly the rows that it gives on one, whichever replica is slow or fails.
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/base/status.h"
#include "server/model/transfer.h"
#include "tests/engine/dataset_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kThree = {"hook_embed", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"};

bool Eventually(const std::function<bool()>& holds) {
  for (const absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end;
       absl::SleepFor(absl::Milliseconds(2))) {
    if (holds()) return true;
  }
  return holds();
}

// A device that can be made to fail every operation. The transfers are made in the order of replica 0's executor, its
// copier, replica 1's executor, ...
class FailingTransfer : public Transfer {
 public:
  // `fails` is shared by the transfers of a device.
  explicit FailingTransfer(std::shared_ptr<std::atomic<bool>> fails)
      : inner_(MakeLateTransfer(3)), fails_(std::move(fails)) {}

  absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() override { return inner_->BindThread(); }
  absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) override {
    if (*fails_) return Lost();
    return inner_->Upload(values, uploaded);
  }
  absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) override {
    if (*fails_) return Lost();
    return inner_->MakeIndex(std::move(rows));
  }
  absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index, int64_t rows,
                                                    const RowLayout& layout) override {
    if (*fails_) return Lost();
    return inner_->Stage(value, index, rows, layout);
  }
  absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) override {
    if (*fails_) return Lost();
    return inner_->Copy(rows, first, count, destination);
  }
  absl::StatusOr<std::unique_ptr<TransferEvent>> Record() override {
    if (*fails_) return Lost();
    ASSIGN_OR_RETURN(std::unique_ptr<TransferEvent> event, inner_->Record());
    return std::make_unique<Event>(std::move(event), fails_);
  }
  absl::Status Check() override { return *fails_ ? Lost() : inner_->Check(); }

 private:
  class Event : public TransferEvent {
   public:
    Event(std::unique_ptr<TransferEvent> inner, std::shared_ptr<std::atomic<bool>> fails)
        : inner_(std::move(inner)), fails_(std::move(fails)) {}
    absl::Status Wait() override { return *fails_ ? Lost() : inner_->Wait(); }

   private:
    const std::unique_ptr<TransferEvent> inner_;
    const std::shared_ptr<std::atomic<bool>> fails_;
  };

  static absl::Status Lost() { return absl::InternalError("the device fell off the bus"); }

  const std::unique_ptr<Transfer> inner_;
  const std::shared_ptr<std::atomic<bool>> fails_;
};

class ReplicasTest : public DatasetTest {
 protected:
  ReplicasTest() { replicas_ = 3; }

  // Creates an engine whose replicas can be made to fail.
  void CreateThatFails() {
    int made = 0;
    make_transfer_ = [this, &made] {
      if (made % 2 == 0) fails_.push_back(std::make_shared<std::atomic<bool>>(false));
      ++made;
      return std::make_unique<FailingTransfer>(fails_.back());
    };
    CreateWithDataset();
    make_transfer_ = nullptr;
  }

  void CloseAll() {
    for (FakeModel* model : replica_models_) model->Close();
  }
  // Opens all replicas but one that has begun a forward pass. Returns that one.
  FakeModel* OpenAllButOne() {
    FakeModel* held = nullptr;
    EXPECT_TRUE(Eventually([&] {
      for (FakeModel* model : replica_models_) {
        if (model->is_blocked()) held = model;
      }
      return held != nullptr;
    }));
    for (FakeModel* model : replica_models_) {
      if (model != held) model->Open();
    }
    return held;
  }

  int64_t Passes() const {
    int64_t passes = 0;
    for (const FakeModel* model : replica_models_) passes += static_cast<int64_t>(model->passes().size());
    return passes;
  }

  std::vector<std::shared_ptr<std::atomic<bool>>> fails_;  // by replica
};

TEST_F(ReplicasTest, RowsLeaveInOrderWhicheverReplicaIsSlow) {
  CreateWithDataset();
  const auto sequences = Sequences(std::vector<int>(40, 60));
  CloseAll();
  Collector collector(*engine_, Request(kThree, sequences));
  FakeModel* const slow = OpenAllButOne();
  // The other replicas run later batches as far as the window allows.
  EXPECT_TRUE(Eventually([&] { return Passes() >= 3; }));
  slow->Open();
  const Collected& got = collector.ReadAll();
  EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
  ExpectSameRows(got.hook_points, Expected(Request(kThree, sequences), kThree, sequences));
  int64_t next_row = 0;
  for (const Collected::ChunkSeen& chunk : got.chunks) {
    if (chunk.hook_point != 0) continue;
    EXPECT_EQ(chunk.first_row, next_row);
    next_row += chunk.rows;
  }
}

TEST_F(ReplicasTest, RowsThatWaitForAnEarlierBatchHoldNoMoreThanTheWindow) {
  options_.window_slabs = 2;
  CreateWithDataset();
  const auto sequences = Sequences(std::vector<int>(200, 60));
  CloseAll();
  const CaptureRequest request = Request(kThree, sequences);
  Collector collector(*engine_, request);
  FakeModel* const slow = OpenAllButOne();
  // Meanwhile the other replicas run the 150 batches of another capture.
  Collector other(*engine_, Request(kThree, Sequences(std::vector<int>(150, 60))));
  EXPECT_TRUE(other.ReadAll().ended->status.ok());
  EXPECT_LT(Passes(), 150 + 100) << "of 150 and 200 batches";
  slow->Open();
  ExpectSameRows(collector.ReadAll().hook_points, Expected(request, kThree, sequences));
}

TEST_F(ReplicasTest, ManyCapturesOfEveryKindGetExactlyTheirRows) {
  options_.slab_count = 96;
  CreateWithDataset();
  std::vector<std::thread> clients;
  for (int client = 0; client < 24; ++client) {
    clients.emplace_back([this, client] {
      auto sequences = Sequences(std::vector<int>(5 + client, 3 + 2 * client), client + 1);
      CaptureRequest request = Request(kThree, sequences);
      if (client % 4 == 1) request.max_activations = 3 * client;
      if (client % 4 == 2) request.max_activations_by_hook_point = {{kThree[1], client}};
      if (client % 3 == 0) request.selection.position_stride = 2;
      request.deterministic = client % 5 == 0;
      Collector collector(*engine_, request);
      const Collected& got = collector.ReadAll();
      EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
      ExpectSameRows(got.hook_points, Expected(request, kThree, sequences));
    });
  }
  for (std::thread& client : clients) client.join();
  for (const FakeModel* model : replica_models_) EXPECT_FALSE(model->passes().empty());
}

TEST_F(ReplicasTest, AResumeContinuesAtEveryCut) {
  CreateWithDataset();
  CaptureRequest request = Request(kThree, {});
  request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
  request.selection.position_stride = 3;
  const auto expected = Expected(request, kThree, all_);
  Collector whole(*engine_, request);
  const std::vector<Collected::ChunkSeen> chunks = whole.ReadAll().chunks;
  for (size_t cut = 0; cut < chunks.size(); cut += 5) {
    Collector first(*engine_, request);
    CaptureRequest rest = request;
    rest.resume_token = first.ReadChunks(static_cast<int>(cut) + 1).chunks.back().resume_token;
    std::vector<Collected::Rows> rows = first.collected().hook_points;
    first.Release();
    Collector second(*engine_, rest);
    const std::vector<Collected::Rows> more = second.ReadAll().hook_points;
    for (size_t h = 0; h < rows.size(); ++h) {
      const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
      append(rows[h].values, more[h].values);
      append(rows[h].sequence, more[h].sequence);
      append(rows[h].position, more[h].position);
      append(rows[h].token_id, more[h].token_id);
    }
    ExpectSameRows(rows, expected);
  }
}

TEST_F(ReplicasTest, MembersOfAFeedGetTheSameRows) {
  CreateWithDataset();
  CaptureRequest request = Request(kThree, {});
  request.source = FeedSource{"feed", {"corpus", kLength, 0, 0, {}, {}}, /*start_when_subscribers=*/3, OnLag::kWait};
  std::vector<std::vector<Collected::Rows>> got(3);
  std::vector<std::thread> members;
  for (auto& rows : got) {
    members.emplace_back([&] { rows = Collector(*engine_, request).ReadAll().hook_points; });
  }
  for (std::thread& member : members) member.join();
  const auto expected = Expected(request, kThree, all_);
  for (const auto& rows : got) ExpectSameRows(rows, expected);
}

TEST_F(ReplicasTest, ABatchThatCannotBeComputedEndsItsCaptureAfterTheRowsBeforeIt) {
  CreateWithDataset();
  auto sequences = Sequences(std::vector<int>(20, 60));
  for (auto& ids : sequences) {
    for (uint32_t& id : ids) id = std::min<uint32_t>(id, 500);
  }
  sequences[12][5] = 511;
  for (FakeModel* model : replica_models_) model->FailOn(511, absl::InternalError("a kernel failed"));
  Collector collector(*engine_, Request(kThree, sequences));
  const Collected& got = collector.ReadAll();
  EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kInternal);
  sequences.resize(12);
  // The rows are those before the sequence at fault, or fewer, and no others.
  const auto expected = Expected(Request(kThree, sequences), kThree, sequences);
  const auto& rows = got.hook_points[0].values;
  ASSERT_LE(rows.size(), expected[0].values.size());
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), expected[0].values.begin()));
}

TEST_F(ReplicasTest, WhatALostReplicaHadRunsAgainOnTheOthers) {
  CaptureRequest request = Request(kThree, {});
  request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
  for (int lost = 0; lost < 3; ++lost) {
    CreateThatFails();
    const auto expected = Expected(request, kThree, all_);
    {
      Collector collector(*engine_, request);
      collector.ReadChunks(4);
      *fails_[lost] = true;
      const Collected& got = collector.ReadAll();
      EXPECT_TRUE(got.ended->status.ok()) << got.ended->status;
      ExpectSameRows(got.hook_points, expected);
      // Another capture finds the loss if the first one did not.
      Collector again(*engine_, request);
      ExpectSameRows(again.ReadAll().hook_points, expected);
    }
    ExpectAllSlabsBack();
    EXPECT_EQ(told_, 0);
    engine_.reset();
    fails_.clear();
    replica_models_.clear();
  }
}

TEST_F(ReplicasTest, ReplicasThatAreLostAreReported) {
  CreateThatFails();
  *fails_[1] = true;
  CaptureRequest request = Request(kThree, {});
  request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
  const auto is_lost = [&] {
    EXPECT_TRUE(Collector(*engine_, request).ReadAll().ended->status.ok());
    return engine_->Snapshot().models[0].replicas[1].is_lost;
  };
  EXPECT_TRUE(Eventually(is_lost));
  const EngineSnapshot snapshot = engine_->Snapshot();
  ASSERT_EQ(snapshot.models[0].replicas.size(), 3u);
  EXPECT_FALSE(snapshot.models[0].replicas[0].is_lost);
  EXPECT_EQ(snapshot.models[0].replicas[0].devices(), "cpu");
  EXPECT_GT(snapshot.models[0].replicas[0].tokens + snapshot.models[0].replicas[2].tokens, 0);
}

TEST_F(ReplicasTest, WithNoReplicaLeftCapturesEndWithAResumeToken) {
  CreateThatFails();
  CaptureRequest request = Request(kThree, {});
  request.source = DatasetSource{"corpus", kLength, 0, 0, {}, {}};
  Collector collector(*engine_, request);
  collector.ReadChunks(2);
  for (const auto& fails : fails_) *fails = true;
  const Collected& got = collector.ReadAll();
  if (got.ended->status.ok()) GTEST_FAIL() << "the capture ended before its devices failed";
  EXPECT_EQ(got.ended->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(got.ended->status.message()), HasSubstr("fell off the bus"));
  EXPECT_FALSE(got.ended->resume_token.empty());
  EXPECT_TRUE(Eventually([&] { return told_ == 1; }));
  EXPECT_EQ(Collector(*engine_, request).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace hookline
