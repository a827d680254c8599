#include "server/recorder/replay.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "server/base/hash.h"
#include "server/base/shuffled_order.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/capture/budgets.h"
#include "server/capture/limits.h"
#include "server/capture/message_size.h"
#include "server/model/hook_points.h"

namespace hookline {
namespace {

// One hook point of the read.
struct Wanted {
  int index = 0;  // in the manifest
  std::string name;
  int64_t row_bytes = 0;
  int64_t budget = 0;  // rows to send
};

// Between two chunks: `row` is the first of the row group, of which `hook_points` chunks have been sent.
struct Place {
  int64_t row = 0;
  int32_t hook_points = 0;
};

struct Plan {
  int64_t first_row = 0;
  int64_t rows = 0;  // of the range
  std::vector<Wanted> hook_points;
  int64_t most_rows = 0;   // the largest budget
  int64_t group_rows = 0;  // of a row group
  bool is_budgeted = false;
  std::optional<ShuffledOrder> order;
  bool provenance = false;
  uint64_t digest = 0;  // of everything above and the recording
};

constexpr char kTokenVersion = 'R';

std::string EncodeToken(const Plan& plan, const Place& place) {
  std::string token(1, kTokenVersion);
  const auto append = [&](const auto& value) { token.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  append(plan.digest);
  append(place.row);
  append(place.hook_points);
  return token;
}

absl::StatusOr<Place> DecodeToken(absl::string_view token, const Plan& plan) {
  uint64_t digest = 0;
  Place place;
  if (token.size() != 1 + sizeof(digest) + sizeof(place.row) + sizeof(place.hook_points) || token[0] != kTokenVersion) {
    return InvalidField("resume_token", "is not a token of ReadRecording");
  }
  std::memcpy(&digest, token.data() + 1, sizeof(digest));
  std::memcpy(&place.row, token.data() + 9, sizeof(place.row));
  std::memcpy(&place.hook_points, token.data() + 17, sizeof(place.hook_points));
  if (digest != plan.digest || place.row < 0 || place.row > plan.most_rows || place.row % plan.group_rows != 0 ||
      place.hook_points < 0 || place.hook_points > static_cast<int32_t>(plan.hook_points.size())) {
    // The last group may be short, so its end need not be a multiple.
    const bool is_end = digest == plan.digest && place.row == plan.most_rows && place.hook_points == 0;
    if (!is_end) {
      return InvalidField("resume_token", "belongs to another request or another recording");
    }
  }
  return place;
}

absl::Status ResolveHookPoints(const Manifest& manifest, const ReplayRequest& request, Plan& plan) {
  std::vector<HookPoint> points;
  for (const RecordedHookPoint& recorded : manifest.hook_points) {
    HookPoint& point = points.emplace_back();
    point.name = recorded.name;
    point.width = recorded.width;
  }
  const auto add = [&](int index, const std::string& name) {
    const int64_t row_bytes = manifest.LayoutOf(index).bytes();
    plan.hook_points.push_back({index, name, row_bytes, 0});
  };
  const HookPoints all(std::move(points));
  if (request.hook_points.empty()) {
    for (int i = 0; i < all.size(); ++i) add(i, all[i].name);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<ResolvedHookPoint> resolved, all.Resolve(request.hook_points, all.size()));
  for (const ResolvedHookPoint& point : resolved) add(point.index, point.name);
  return absl::OkStatus();
}

absl::Status SetBudgets(const Manifest& manifest, const ReplayRequest& request, Plan& plan) {
  std::vector<std::string> names;
  std::vector<int64_t> available;
  for (const Wanted& point : plan.hook_points) {
    const int64_t end = std::min(plan.first_row + plan.rows, manifest.RowsOf(point.index));
    names.push_back(point.name);
    available.push_back(std::max<int64_t>(0, end - plan.first_row));
    if (request.shuffle_seed.has_value() && available.back() != plan.rows) {
      return InvalidField("shuffle_seed",
                          absl::StrCat(point.name, " has ", manifest.RowsOf(point.index), " rows, the range ends at ",
                                       plan.first_row + plan.rows, "; shuffling needs all rows of every hook point"));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<Budget> budgets,
                   ResolveBudgets(request.max_activations, request.max_activations_by_hook_point, names, available));
  plan.is_budgeted = request.max_activations.has_value();
  for (size_t i = 0; i < budgets.size(); ++i) {
    plan.hook_points[i].budget = budgets[i].rows;
    plan.most_rows = std::max(plan.most_rows, budgets[i].rows);
  }
  return absl::OkStatus();
}

absl::Status SizeGroups(const Manifest& manifest, const ReplayRequest& request, int64_t max_message_bytes, Plan& plan) {
  plan.group_rows = std::max<int64_t>(1, plan.most_rows);
  for (const Wanted& point : plan.hook_points) {
    MessageShape shape;
    shape.hook_point_name_bytes = static_cast<int64_t>(point.name.size());
    shape.layout = manifest.LayoutOf(point.index);
    shape.encoding = request.encoding;
    shape.provenance = request.provenance;
    ASSIGN_OR_RETURN(const int64_t rows, MessageRows(shape, point.name, max_message_bytes));
    plan.group_rows = std::min(plan.group_rows, rows);
  }
  return absl::OkStatus();
}

// Messages of one replay that are in memory at the same time: one on its way to the client, one being read.
constexpr int64_t kBuffers = 2;

// Reused memory for messages. Thread-safe.
class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  Buffers(std::shared_ptr<void> reservation, int64_t bytes) : reservation_(std::move(reservation)), bytes_(bytes) {}

  // Returns none while all are out; then `on_return` runs once when one is back.
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

  const std::shared_ptr<void> reservation_;  // until the last buffer is back
  const int64_t bytes_;
  absl::Mutex mutex_;
  int64_t out_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::unique_ptr<uint8_t[]>> free_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_return_ ABSL_GUARDED_BY(mutex_);
};

class Replay final : public Capture, public std::enable_shared_from_this<Replay> {
 public:
  Replay(std::shared_ptr<const RecordingReader> recording, Plan plan, const Place& place, int64_t max_message_bytes,
         std::shared_ptr<Buffers> buffers, ReplayHost host)
      : recording_(std::move(recording)),
        plan_(std::move(plan)),
        max_message_bytes_(max_message_bytes),
        begin_(SteadyNow()),
        buffers_(std::move(buffers)),
        post_(std::move(host.post)),
        place_(SkipToChunk(place)),
        on_ready_(std::move(host.on_ready)) {}

  std::optional<CaptureEvent> Next() override {
    absl::MutexLock lock(&mutex_);
    if (ended_) return std::nullopt;
    if (!started_) {
      started_ = true;
      ReadOn();
      return Started();
    }
    if (place_.row >= plan_.most_rows) return End(absl::OkStatus());
    if (!read_.has_value()) {
      waits_ = true;
      return std::nullopt;
    }
    if (!read_->ok()) return End(read_->status());
    Chunk chunk = *std::move(*read_);
    read_.reset();
    place_ = After(place_);
    ReadOn();
    return chunk;
  }

  absl::StatusOr<bool> AddSequences(TokenBatch /*batch*/) override {
    return absl::FailedPreconditionError("a recording takes no sequences");
  }
  void FinishSource() override {}
  void Cancel() override {
    // Gives its buffer back, which may call this object, and so is destroyed without the mutex.
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
  int64_t SentOf(int hook_point) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int64_t rows = place_.row + (hook_point < place_.hook_points ? plan_.group_rows : 0);
    return std::min(rows, plan_.hook_points[hook_point].budget);
  }

  CaptureStarted Started() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Manifest& manifest = recording_->manifest();
    CaptureStarted started;
    started.model = manifest.model;
    started.fingerprint = manifest.fingerprint;
    for (size_t i = 0; i < plan_.hook_points.size(); ++i) {
      const Wanted& point = plan_.hook_points[i];
      started.hook_points.push_back({point.name, manifest.hook_points[point.index].width, point.budget,
                                     /*clipped=*/false, SentOf(static_cast<int>(i))});
    }
    started.dtype = manifest.dtype;
    started.top_k = manifest.top_k;
    started.max_message_bytes = max_message_bytes_;
    started.resume_token = EncodeToken(plan_, place_);
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
      ended.hook_points.emplace_back().rows = SentOf(static_cast<int>(i));
    }
    ended.total_time = SteadyNow() - begin_;
    ended.wire_time = wire_time_;
    ended.resume_token = EncodeToken(plan_, place_);
    return ended;
  }

  // Returns `place`, or the first one after it at which a chunk begins.
  Place SkipToChunk(Place place) const {
    const auto hook_points = static_cast<int32_t>(plan_.hook_points.size());
    while (place.row < plan_.most_rows) {
      while (place.hook_points < hook_points && plan_.hook_points[place.hook_points].budget <= place.row) {
        ++place.hook_points;
      }
      if (place.hook_points < hook_points) break;
      place = {std::min(place.row + plan_.group_rows, plan_.most_rows), 0};
    }
    return place;
  }
  Place After(const Place& place) const { return SkipToChunk({place.row, place.hook_points + 1}); }

  // Posts the reading of the chunk at place_.
  void ReadOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (place_.row >= plan_.most_rows) return;
    work_ = Work();
    work_.place = place_;
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

  // Returns whether the chunk is read. If not, another step is posted, now or when a buffer is back.
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
    const Place& place = work_.place;
    const Wanted& point = plan_.hook_points[place.hook_points];
    Chunk& chunk = work_.chunk;
    chunk.hook_point = place.hook_points;
    chunk.first_row = place.row;
    chunk.rows = std::min(plan_.group_rows, point.budget - place.row);
    chunk.resume_token = EncodeToken(plan_, After(place));
    work_.values_read = RowRead::OfHookPoint(recording_, point.index, RangesOf(place.row, chunk.rows), buffer.data());
    chunk.data.push_back({std::move(buffer), 0, chunk.rows * point.row_bytes});
    if (!plan_.provenance || (provenance_ != nullptr && provenance_row_ == place.row)) return;
    const int64_t rows = std::min(plan_.group_rows, plan_.most_rows - place.row);
    work_.provenance = std::make_shared<Provenance>();
    work_.provenance->sequence.resize(rows);
    work_.provenance->position.resize(rows);
    work_.token_ids.resize(rows);
    work_.provenance_read = RowRead::OfProvenance(
        recording_, RangesOf(place.row, rows),
        {work_.provenance->sequence.data(), work_.token_ids.data(), work_.provenance->position.data()});
  }

  // Returns the row group's provenance, for its other chunks too.
  void KeepProvenance() {
    work_.provenance->token_id.assign(work_.token_ids.begin(), work_.token_ids.end());
    provenance_ = std::move(work_.provenance);
    provenance_row_ = work_.place.row;
  }

  // Returns where rows of the replay lie in the recording, in the recording's order.
  std::vector<RowRange> RangesOf(int64_t first_row, int64_t rows) const {
    if (!plan_.order.has_value()) return {{plan_.first_row + first_row, rows, 0}};
    std::vector<RowRange> ranges;
    ranges.reserve(rows);
    for (int64_t i = 0; i < rows; ++i) ranges.push_back({plan_.first_row + (*plan_.order)[first_row + i], 1, i});
    std::sort(ranges.begin(), ranges.end(),
              [](const RowRange& a, const RowRange& b) { return a.first_row < b.first_row; });
    return ranges;
  }

  const std::shared_ptr<const RecordingReader> recording_;
  const Plan plan_;
  const int64_t max_message_bytes_;
  const absl::Time begin_;
  const std::shared_ptr<Buffers> buffers_;
  const std::function<void(std::function<void()>)> post_;

  // Only the steps use this, one at a time; it is set with the mutex held while none is posted.
  struct Work {
    Place place;
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
  Place place_ ABSL_GUARDED_BY(mutex_);                                // before the next chunk
  std::optional<absl::StatusOr<Chunk>> read_ ABSL_GUARDED_BY(mutex_);  // at place_
  bool waits_ ABSL_GUARDED_BY(mutex_) = false;                         // Next returned none
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration wire_time_ ABSL_GUARDED_BY(mutex_);
  // This is held while on_ready_ runs, so that Cancel waits for it.
  absl::Mutex callback_mutex_;
  std::function<void()> on_ready_ ABSL_GUARDED_BY(callback_mutex_);
};

// Returns the bytes of the largest chunk's values.
int64_t BufferBytes(const Plan& plan) {
  int64_t bytes = 1;
  for (const Wanted& point : plan.hook_points) bytes = std::max(bytes, plan.group_rows * point.row_bytes);
  return bytes;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request, ReplayHost host) {
  const Manifest& manifest = recording->manifest();
  ASSIGN_OR_RETURN(const int64_t max_message_bytes, ResolveMessageBytes(request.max_message_bytes));
  if (request.first_row < 0 || request.first_row > manifest.rows()) {
    return InvalidField("first_row", absl::StrCat(request.first_row, " is not from 0 to ", manifest.rows(),
                                                  ", the rows of recording ", manifest.name));
  }
  if (request.row_count < 0) return InvalidField("row_count", absl::StrCat(request.row_count, " is negative"));
  Plan plan;
  plan.first_row = request.first_row;
  plan.rows = manifest.rows() - request.first_row;
  if (request.row_count > 0) plan.rows = std::min(plan.rows, request.row_count);
  plan.provenance = request.provenance;
  RETURN_IF_ERROR(ResolveHookPoints(manifest, request, plan));
  RETURN_IF_ERROR(SetBudgets(manifest, request, plan));
  RETURN_IF_ERROR(SizeGroups(manifest, request, max_message_bytes, plan));
  if (request.shuffle_seed.has_value() && plan.rows > 0) plan.order.emplace(plan.rows, *request.shuffle_seed);
  std::string text = absl::StrCat(manifest.name, " ", manifest.request_digest, " ", manifest.fingerprint, " ",
                                  plan.first_row, " ", plan.rows, " ", plan.group_rows, " ", plan.provenance, " ",
                                  request.shuffle_seed.has_value() ? absl::StrCat(*request.shuffle_seed) : "in order");
  for (const Wanted& point : plan.hook_points) absl::StrAppend(&text, " ", point.name, " ", point.budget);
  plan.digest = Xxh3Of64Bits(text);
  Place place;
  if (!request.resume_token.empty()) {
    ASSIGN_OR_RETURN(place, DecodeToken(request.resume_token, plan));
  }
  const int64_t buffer_bytes = BufferBytes(plan);
  const int64_t provenance_bytes = plan.provenance ? plan.group_rows * 2 * kProvenanceRowBytes : 0;
  ASSIGN_OR_RETURN(std::shared_ptr<void> reservation,
                   recording->memory().Reserve(kBuffers * (buffer_bytes + provenance_bytes)));
  auto buffers = std::make_shared<Buffers>(std::move(reservation), buffer_bytes);
  return std::make_shared<Replay>(std::move(recording), std::move(plan), place, max_message_bytes, std::move(buffers),
                                  std::move(host));
}

}  // namespace hookline
