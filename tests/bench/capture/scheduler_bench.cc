// Simulates 8 to 64 replicas, whose forward passes take 10 ms, with 10 to 1000 captures: the server's own scheduler
// runs on a clock that the simulation moves. Reports how busy the replicas are, how long small captures wait beside the
// others, and how much the scheduler itself computes for each batch.
//
//   scheduler_bench [SECONDS]     simulated seconds of each line, 2 by default
//
// Each client has ten bulk captures, which read one dataset each without end. Beside them one small capture of one
// sequence always runs; when its row has come, the next one begins. Rows leave at once.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/engine/scheduler.h"
#include "tests/engine/fake_model.h"
#include "tests/support/fake_clock.h"
#include "tests/support/tokens.h"

namespace hookline {
namespace {

constexpr absl::Duration kPass = absl::Milliseconds(10);
constexpr int64_t kLength = 256;        // tokens of a sequence
constexpr int64_t kBatchTokens = 2048;  // eight sequences
constexpr int64_t kDatasetTokens = int64_t{1} << 22;
constexpr int kCapturesOfAClient = 10;

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    absl::FPrintF(stderr, "%s\n", result.status().ToString());
    std::exit(1);
  }
  return *std::move(result);
}

// Returns the processor time of this thread.
absl::Duration ProcessorTime() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

struct Result {
  double utilisation = 0;
  absl::Duration median, slowest;  // of small captures
  absl::Duration cost;             // the scheduler's, for each batch
  int64_t batches = 0;
};

class Simulation {
 public:
  Simulation(int replicas, int captures, const Dataset* dataset) : dataset_(dataset), replicas_(replicas) {
    options_.slab_bytes = 4096;
    options_.slab_count = int64_t{8} * (captures + 16);
    options_.window_slabs = 2;
    options_.max_batch_tokens = kBatchTokens;
    options_.max_captures = options_.max_captures_per_address = captures + 16;
    options_.default_quotas.captures = options_.default_quotas.waiting = captures + 16;
    options_.default_quotas.slabs = options_.slab_count;
    const size_t bytes = static_cast<size_t>(options_.slab_count * options_.slab_bytes);
    std::shared_ptr<uint8_t> memory(static_cast<uint8_t*>(std::aligned_alloc(4096, bytes)), std::free);
    scheduler_ = std::make_unique<Scheduler>(options_, std::move(memory), &clock_);
    ModelSetup setup;
    setup.info = &model_.info();
    setup.max_batch_tokens = kBatchTokens;
    for (int i = 0; i < replicas; ++i) setup.executors.push_back({i, {"cpu"}, [](CaptureId) {}});
    id_ = scheduler_->AddModel(std::move(setup));
    free_at_.assign(static_cast<size_t>(replicas), clock_.Now());
    for (int i = 0; i < captures; ++i) {
      CaptureRequest request;
      request.source = DatasetSource{"tokens", kLength, 0, 0, {}, {}};
      std::get<DatasetSource>(request.source).epochs = 1000;
      Begin(std::move(request), absl::StrCat("client ", i / kCapturesOfAClient));
    }
  }

  Result Run(absl::Duration length) {
    const absl::Time end = clock_.Now() + length;
    BeginSmall();
    while (clock_.Now() < end) {
      for (int i = 0; i < replicas_; ++i) Offer(i);
      const absl::Time next = passes_.empty() ? look_again_ : std::min(look_again_, passes_.top().ends);
      clock_.Advance(std::max(next - clock_.Now(), absl::Microseconds(1)));
      look_again_ = absl::InfiniteFuture();
      while (!passes_.empty() && passes_.top().ends <= clock_.Now()) Finish();
    }
    Result result;
    result.utilisation = absl::FDivDuration(busy_, length * replicas_);
    std::sort(latencies_.begin(), latencies_.end());
    if (!latencies_.empty()) {
      result.median = latencies_[latencies_.size() / 2];
      result.slowest = latencies_.back();
    }
    result.batches = batches_;
    result.cost = cost_ / std::max<int64_t>(1, batches_);
    return result;
  }

 private:
  struct Pass {
    absl::Time ends;
    int executor = 0;
    std::shared_ptr<Batch> batch;
    bool operator<(const Pass& other) const { return ends > other.ends; }  // puts the first to end on top
  };

  // Counts what the scheduler computes, but not the simulation. Counts processor time, so that a busy machine has
  // no effect.
  template <typename Work>
  auto Timed(Work work) {
    const absl::Duration begin = ProcessorTime();
    auto result = work();
    cost_ += ProcessorTime() - begin;
    return result;
  }

  CaptureId Begin(CaptureRequest request, const std::string& client) {
    request.hook_points = {"hook_embed"};
    request.max_message_bytes = 16384;
    CapturePlan plan =
        Must(MakeCapturePlan(std::move(request), model_, LimitsFor(options_, model_.info()), {dataset_}));
    Scheduler::Admitted admitted = Must(scheduler_->Admit(id_, std::move(plan), client, {}));
    captures_[admitted.id] = admitted.events;
    return admitted.id;
  }

  void BeginSmall() {
    CaptureRequest request;
    request.source = Tokens({std::vector<uint32_t>(64, 1)});
    small_begun_ = clock_.Now();
    small_ = Begin(std::move(request), "a small client");
  }

  // Lets an executor take what it may launch.
  void Offer(int executor) {
    const ExecutorId id{id_, executor};
    while (true) {
      absl::Time look_again;
      std::optional<Batch> batch = Timed([&] { return scheduler_->TryNextBatch(id, &look_again); });
      look_again_ = std::min(look_again_, look_again);
      if (!batch.has_value()) return;
      LaunchedPass launched;
      launched.tokens = launched.positions = 0;
      for (const BatchItem& item : batch->items) launched.tokens += item.sequence.length;
      launched.positions = launched.tokens;
      for (Batch::Member& member : batch->members) {
        member.has_rows = true;
        launched.shares.push_back({member.recipient.capture, 1, 1, {}});
      }
      Timed([&] {
        scheduler_->Planned(id, *batch);
        scheduler_->Launched(id, {launched});
        return 0;
      });
      absl::Time& free_at = free_at_[static_cast<size_t>(executor)];
      free_at = std::max(free_at, clock_.Now()) + kPass;
      ++batches_;
      passes_.push({free_at, executor, std::make_shared<Batch>(*std::move(batch))});
    }
  }

  void Finish() {
    const Pass pass = passes_.top();
    passes_.pop();
    busy_ += kPass;
    ComputedBatch computed;
    computed.forward_time = kPass;
    for (const BatchItem& item : pass.batch->items) computed.tokens += item.sequence.length;
    for (const Batch::Member& member : pass.batch->members) computed.captures.push_back(member.recipient.capture);
    Timed([&] {
      scheduler_->Computed({id_, pass.executor}, computed);
      return 0;
    });
    for (const Batch::Member& member : pass.batch->members) {
      waiting_[member.recipient.capture].insert(member.turn);
      HandOver(member.recipient.capture);
    }
  }

  // Hands over every batch whose turn it is.
  void HandOver(CaptureId id) {
    std::set<int64_t>& waiting = waiting_[id];
    while (!waiting.empty()) {
      const int64_t turn = *waiting.begin();
      if (Timed([&] { return scheduler_->TurnOf(id, turn); }) != Turn::kNow) return;
      waiting.erase(waiting.begin());
      Timed([&] {
        scheduler_->Delivered(id, {turn, absl::ZeroDuration(), /*has_gap=*/false});
        return 0;
      });
      if (id != small_) continue;
      latencies_.push_back(clock_.Now() - small_begun_);
      while (captures_.at(id)->Next().has_value()) {
      }
      captures_.erase(id);
      waiting_.erase(id);
      return BeginSmall();
    }
  }

  const Dataset* const dataset_;
  const int replicas_;
  EngineOptions options_;
  FakeClock clock_;
  FakeModel model_;
  std::map<CaptureId, std::shared_ptr<EventQueue>> captures_;
  std::unique_ptr<Scheduler> scheduler_;
  ModelId id_{};
  std::vector<absl::Time> free_at_;  // by executor
  std::priority_queue<Pass> passes_;
  std::map<CaptureId, std::set<int64_t>> waiting_;  // turns that were computed
  absl::Time look_again_ = absl::InfiniteFuture();
  CaptureId small_{};
  absl::Time small_begun_;
  std::vector<absl::Duration> latencies_;
  absl::Duration busy_, cost_;
  int64_t batches_ = 0;
};

void Main(double seconds) {
  const std::string path = absl::StrCat("/tmp/hookline-scheduler-bench-", getpid(), ".bin");
  {
    std::ofstream out(path, std::ios::binary);
    const std::vector<char> zeros(static_cast<size_t>(2 * kDatasetTokens));
    out.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  }
  const std::unique_ptr<const Dataset> dataset = Must(Dataset::Open("tokens", path + ":uint16"));
  std::remove(path.c_str());
  absl::PrintF("%8s %8s %11s %14s %14s %12s %9s\n", "replicas", "captures", "utilisation", "median latency", "longest",
               "cost/batch", "of a pass");
  for (const int replicas : {1, 8, 16, 32, 64}) {
    for (const int captures : {10, 100, 1000}) {
      const Result result = Simulation(replicas, captures, dataset.get()).Run(absl::Seconds(seconds));
      absl::PrintF("%8d %8d %10.1f%% %11.1f ms %11.1f ms %9.1f us %8.2f%%\n", replicas, captures,
                   100 * result.utilisation, absl::ToDoubleMilliseconds(result.median),
                   absl::ToDoubleMilliseconds(result.slowest), absl::ToDoubleMicroseconds(result.cost),
                   100 * absl::FDivDuration(result.cost, kPass));
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) {
  double seconds = 2;
  if (argc > 2 || (argc == 2 && (!absl::SimpleAtod(argv[1], &seconds) || seconds <= 0))) {
    std::fprintf(stderr, "usage: scheduler_bench [SECONDS]\n");
    return 2;
  }
  hookline::Main(seconds);
  return 0;
}
