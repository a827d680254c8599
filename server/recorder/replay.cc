#include "server/recorder/replay.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/base/status.h"
#include "server/base/steady.h"

namespace hookline {
namespace {

// Messages of one replay that are in memory at the same time: one on its way to the client, one being read.
constexpr int64_t kBuffers = 2;

// Reused memory for messages. Thread-safe.
class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  Buffers(std::shared_ptr<void> reservation, int64_t bytes) : reservation_(std::move(reservation)), bytes_(bytes) {}

  // Returns none while all are in use; then `on_return` runs once, when one has been returned.
  SlabRef Take(std::function<void()> on_return) {
    std::unique_ptr<uint8_t[]> buffer;
    {
      absl::MutexLock lock(&mutex_);
      if (out_ == kBuffers) {
        on_return_ = std::move(on_return);
        return SlabRef();
      }
      ++out_;
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (buffer == nullptr) buffer.reset(new uint8_t[bytes_]);
    uint8_t* data = buffer.release();
    return SlabRef(data, bytes_, [self = shared_from_this(), data] { self->Return(data); });
  }

 private:
  void Return(uint8_t* data) {
    std::function<void()> on_return;
    {
      absl::MutexLock lock(&mutex_);
      --out_;
      free_.emplace_back(data);
      on_return = std::exchange(on_return_, nullptr);
    }
    if (on_return) on_return();
  }

  const std::shared_ptr<void> reservation_;  // held until the last buffer is returned
  const int64_t bytes_;
  absl::Mutex mutex_;
  int64_t out_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::unique_ptr<uint8_t[]>> free_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_return_ ABSL_GUARDED_BY(mutex_);
};

class Replay final : public Capture, public std::enable_shared_from_this<Replay> {
 public:
  Replay(std::shared_ptr<const RecordingReader> recording, ReplayPlan plan, const ReplayPosition& position,
         std::shared_ptr<Buffers> buffers, ReplayHost host)
      : recording_(std::move(recording)),
        plan_(std::move(plan)),
        begin_(SteadyNow()),
        buffers_(std::move(buffers)),
        post_(std::move(host.post)),
        position_(plan_.SkipToChunk(position)),
        on_ready_(std::move(host.on_ready)) {}

  std::optional<CaptureEvent> Next() override {
    absl::MutexLock lock(&mutex_);
    if (ended_) return std::nullopt;
    if (!started_) {
      started_ = true;
      ReadOn();
      return Started();
    }
    if (position_.row >= plan_.most_rows) return End(absl::OkStatus());
    if (!read_.has_value()) {
      waits_ = true;
      return std::nullopt;
    }
    if (!read_->ok()) return End(read_->status());
    Chunk chunk = *std::move(*read_);
    read_.reset();
    position_ = plan_.After(position_);
    ReadOn();
    return chunk;
  }

  absl::StatusOr<bool> AddSequences(TokenBatch /*batch*/) override {
    return absl::FailedPreconditionError("a recording takes no sequences");
  }
  void FinishSource() override {}
  void Cancel() override {
    // This gives a buffer back, which may call this object, so it is destroyed without the mutex.
    std::optional<absl::StatusOr<Chunk>> dropped;
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
      dropped.swap(read_);
    }
    absl::MutexLock lock(&callback_mutex_);
    on_ready_ = nullptr;
  }
  void AddWireTime(absl::Duration duration) override {
    absl::MutexLock lock(&mutex_);
    wire_time_ += duration;
  }

 private:
  CaptureStarted Started() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Manifest& manifest = recording_->manifest();
    CaptureStarted started;
    started.model = manifest.model;
    started.fingerprint = manifest.fingerprint;
    for (size_t i = 0; i < plan_.hook_points.size(); ++i) {
      const ReplayPlan::HookPoint& point = plan_.hook_points[i];
      started.hook_points.push_back({point.name, manifest.hook_points[point.index].width, point.budget,
                                     /*clipped=*/false, plan_.SentOf(static_cast<int>(i), position_)});
    }
    started.dtype = manifest.dtype;
    started.top_k = manifest.top_k;
    started.max_message_bytes = plan_.max_message_bytes;
    started.resume_token = plan_.Token(position_);
    return started;
  }

  CaptureEnded End(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ended_ = true;
    CaptureEnded ended;
    ended.stop_reason = !status.ok()        ? StopReason::kError
                        : plan_.is_budgeted ? StopReason::kBudget
                                            : StopReason::kSourceEnded;
    ended.status = std::move(status);
    for (size_t i = 0; i < plan_.hook_points.size(); ++i) {
      ended.hook_points.emplace_back().rows = plan_.SentOf(static_cast<int>(i), position_);
    }
    ended.total_time = SteadyNow() - begin_;
    ended.wire_time = wire_time_;
    ended.resume_token = plan_.Token(position_);
    return ended;
  }

  // Posts the reading of the chunk at position_, if there is one.
  void ReadOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (position_.row >= plan_.most_rows) return;
    work_ = Work();
    work_.position = position_;
    PostStep();
  }

  void PostStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!ended_) post_([self = shared_from_this()] { self->RunStep(); });
  }

  void PostNextStep() {
    absl::MutexLock lock(&mutex_);
    PostStep();
  }

  void RunStep() {
    {
      absl::MutexLock lock(&mutex_);
      if (ended_) return;
    }
    const absl::StatusOr<bool> done = Step();
    if (done.ok() && !*done) return;  // the next step may run already
    bool waits;
    {
      absl::MutexLock lock(&mutex_);
      if (ended_) return;
      if (done.ok()) {
        read_ = std::move(work_.chunk);
      } else {
        read_ = done.status();
      }
      waits = std::exchange(waits_, false);
    }
    if (!waits) return;
    absl::MutexLock lock(&callback_mutex_);
    if (on_ready_) on_ready_();
  }

  // Returns whether the chunk has been read. If not, another step is posted, now or when a buffer has been returned.
  absl::StatusOr<bool> Step() {
    if (!work_.has_begun) {
      SlabRef buffer = buffers_->Take([weak = weak_from_this()] {
        if (std::shared_ptr<Replay> self = weak.lock()) self->PostNextStep();
      });
      if (!buffer) return false;
      BeginChunk(std::move(buffer));
    }
    for (std::optional<RowRead>* read : {&work_.provenance_read, &work_.values_read}) {
      if (!read->has_value()) continue;
      ASSIGN_OR_RETURN(const bool done, (*read)->Advance());
      if (!done) {
        PostNextStep();
        return false;
      }
      if (read == &work_.provenance_read) KeepProvenance();
      read->reset();
    }
    if (plan_.provenance) work_.chunk.provenance = provenance_;
    return true;
  }

  void BeginChunk(SlabRef buffer) {
    work_.has_begun = true;
    const ReplayPosition& position = work_.position;
    const ReplayPlan::HookPoint& point = plan_.hook_points[position.hook_points];
    Chunk& chunk = work_.chunk;
    chunk.hook_point = position.hook_points;
    chunk.first_row = position.row;
    chunk.rows = std::min(plan_.group_rows, point.budget - position.row);
    chunk.resume_token = plan_.Token(plan_.After(position));
    work_.values_read =
        RowRead::OfHookPoint(recording_, point.index, plan_.RangesOf(position.row, chunk.rows), buffer.data());
    chunk.data.push_back({std::move(buffer), 0, chunk.rows * point.row_bytes});
    if (!plan_.provenance || (provenance_ != nullptr && provenance_row_ == position.row)) return;
    const int64_t rows = std::min(plan_.group_rows, plan_.most_rows - position.row);
    work_.provenance = std::make_shared<Provenance>();
    work_.provenance->sequence.resize(rows);
    work_.provenance->position.resize(rows);
    work_.token_ids.resize(rows);
    work_.provenance_read = RowRead::OfProvenance(
        recording_, plan_.RangesOf(position.row, rows),
        {work_.provenance->sequence.data(), work_.token_ids.data(), work_.provenance->position.data()});
  }

  // Keeps the row group's provenance, which its other chunks need too.
  void KeepProvenance() {
    work_.provenance->token_id.assign(work_.token_ids.begin(), work_.token_ids.end());
    provenance_ = std::move(work_.provenance);
    provenance_row_ = work_.position.row;
  }

  const std::shared_ptr<const RecordingReader> recording_;
  const ReplayPlan plan_;
  const absl::Time begin_;
  const std::shared_ptr<Buffers> buffers_;
  const std::function<void(std::function<void()>)> post_;

  // Only the steps use this, one at a time; it is set with the mutex held while none is posted.
  struct Work {
    ReplayPosition position;
    bool has_begun = false;
    Chunk chunk;
    std::optional<RowRead> values_read;
    std::shared_ptr<Provenance> provenance;
    std::vector<int64_t> token_ids;  // as wide as shards hold them
    std::optional<RowRead> provenance_read;
  };
  Work work_;
  std::shared_ptr<const Provenance> provenance_;  // of the row group at provenance_row_
  int64_t provenance_row_ = 0;

  absl::Mutex mutex_;
  ReplayPosition position_ ABSL_GUARDED_BY(mutex_);                    // before the next chunk
  std::optional<absl::StatusOr<Chunk>> read_ ABSL_GUARDED_BY(mutex_);  // at position_
  bool waits_ ABSL_GUARDED_BY(mutex_) = false;                         // Next returned none
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration wire_time_ ABSL_GUARDED_BY(mutex_);
  // This is held while on_ready_ runs, so that Cancel waits for it.
  absl::Mutex callback_mutex_;
  std::function<void()> on_ready_ ABSL_GUARDED_BY(callback_mutex_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request, ReplayHost host) {
  ASSIGN_OR_RETURN(ReplayPlan plan, PlanReplay(recording->manifest(), request));
  ReplayPosition begin;
  if (!request.resume_token.empty()) {
    ASSIGN_OR_RETURN(begin, plan.ReadToken(request.resume_token));
  }
  const int64_t provenance_bytes = plan.provenance ? plan.group_rows * 2 * kProvenanceRowBytes : 0;
  ASSIGN_OR_RETURN(std::shared_ptr<void> reservation,
                   recording->memory().Reserve(kBuffers * (plan.ChunkBytes() + provenance_bytes)));
  auto buffers = std::make_shared<Buffers>(std::move(reservation), plan.ChunkBytes());
  return std::make_shared<Replay>(std::move(recording), std::move(plan), begin, std::move(buffers), std::move(host));
}

}  // namespace hookline
