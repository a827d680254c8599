#include "server/capture/replay.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/capture/message_size.h"
#include "server/model/hook_points.h"

namespace hookline {
namespace {

// As of a capture (proto CaptureRequest.max_message_bytes).
constexpr int64_t kDefaultMessageBytes = int64_t{1} << 20;
constexpr int64_t kMinMessageBytes = int64_t{16} << 10;
constexpr int64_t kMaxMessageBytes = int64_t{16} << 20;

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
    const int64_t row_bytes = manifest.hook_points[index].width * DtypeBytes(manifest.dtype);
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
  const auto check = [](absl::string_view field, int64_t budget) {
    if (budget >= 1) return absl::OkStatus();
    return InvalidField(field, absl::StrCat(budget, " is not positive"));
  };
  if (request.max_activations.has_value()) RETURN_IF_ERROR(check("max_activations", *request.max_activations));
  for (const auto& [name, budget] : request.max_activations_by_hook_point) {
    const std::string field = absl::StrCat("max_activations_by_hook_point[", name, "]");
    RETURN_IF_ERROR(check(field, budget));
    const bool is_wanted = std::any_of(plan.hook_points.begin(), plan.hook_points.end(),
                                       [&, &name = name](const Wanted& point) { return point.name == name; });
    if (!is_wanted) return InvalidField(field, "is not among the hook points asked for");
  }
  plan.is_budgeted = request.max_activations.has_value();
  for (Wanted& point : plan.hook_points) {
    const int64_t end = std::min(plan.first_row + plan.rows, manifest.RowsOf(point.index));
    const int64_t available = std::max<int64_t>(0, end - plan.first_row);
    if (request.shuffle_seed.has_value() && available != plan.rows) {
      return InvalidField("shuffle_seed",
                          absl::StrCat(point.name, " has ", manifest.RowsOf(point.index), " rows, the range ends at ",
                                       plan.first_row + plan.rows, "; shuffling needs all rows of every hook point"));
    }
    const auto own = request.max_activations_by_hook_point.find(point.name);
    const int64_t asked =
        own != request.max_activations_by_hook_point.end() ? own->second : request.max_activations.value_or(available);
    point.budget = std::min(asked, available);
    plan.most_rows = std::max(plan.most_rows, point.budget);
  }
  return absl::OkStatus();
}

absl::Status SizeGroups(const Manifest& manifest, const ReplayRequest& request, int64_t max_message_bytes, Plan& plan) {
  plan.group_rows = std::max<int64_t>(1, plan.most_rows);
  for (const Wanted& point : plan.hook_points) {
    MessageShape shape;
    shape.hook_point_name_bytes = static_cast<int64_t>(point.name.size());
    shape.width = manifest.hook_points[point.index].width;
    shape.dtype = manifest.dtype;
    shape.encoding = request.encoding;
    shape.provenance = request.provenance;
    const int64_t rows = MaxMessageRows(shape, max_message_bytes);
    if (rows == 0) {
      return InvalidField("max_message_bytes",
                          absl::StrCat(max_message_bytes, " does not hold a row of ", point.name, ", which takes ",
                                       MessageHeaderBytes(shape) + MessageRowBytes(shape)));
    }
    plan.group_rows = std::min(plan.group_rows, rows);
  }
  return absl::OkStatus();
}

class Replay final : public Capture {
 public:
  Replay(std::shared_ptr<const RecordingReader> recording, Plan plan, Place place, int64_t max_message_bytes)
      : recording_(std::move(recording)),
        plan_(std::move(plan)),
        max_message_bytes_(max_message_bytes),
        begin_(SteadyNow()),
        place_(place) {}

  std::optional<CaptureEvent> Next() override {
    absl::MutexLock lock(&mutex_);
    if (ended_) return std::nullopt;
    if (!started_) {
      started_ = true;
      return Started();
    }
    SkipToNextChunk();
    if (place_.row >= plan_.most_rows) return End(absl::OkStatus());
    absl::StatusOr<Chunk> chunk = NextChunk();
    if (!chunk.ok()) return End(chunk.status());
    return *std::move(chunk);
  }

  absl::StatusOr<bool> AddSequences(TokenBatch /*batch*/) override {
    return absl::FailedPreconditionError("a recording takes no sequences");
  }
  void FinishSource() override {}
  void Cancel() override {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
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
    started.max_message_bytes = max_message_bytes_;
    started.resume_token = EncodeToken(plan_, place_);
    return started;
  }

  void SkipToNextChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int32_t hook_points = static_cast<int32_t>(plan_.hook_points.size());
    while (place_.row < plan_.most_rows) {
      while (place_.hook_points < hook_points && plan_.hook_points[place_.hook_points].budget <= place_.row) {
        ++place_.hook_points;
      }
      if (place_.hook_points < hook_points) return;
      place_ = {std::min(place_.row + plan_.group_rows, plan_.most_rows), 0};
      provenance_ = nullptr;
    }
  }

  absl::StatusOr<Chunk> NextChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Wanted& point = plan_.hook_points[place_.hook_points];
    Chunk chunk;
    chunk.hook_point = place_.hook_points;
    chunk.first_row = place_.row;
    chunk.rows = std::min(plan_.group_rows, point.budget - place_.row);
    if (plan_.order.has_value()) {
      ASSIGN_OR_RETURN(SlabSpan span, Gather(point, chunk.rows));
      chunk.data.push_back(std::move(span));
    } else {
      ASSIGN_OR_RETURN(std::vector<RecordedRun> runs,
                       recording_->Rows(point.index, plan_.first_row + place_.row, chunk.rows));
      for (RecordedRun& run : runs) {
        // Nobody writes to what a slab reference gives to read.
        auto* data = const_cast<uint8_t*>(run.bytes.data());
        const auto bytes = static_cast<int64_t>(run.bytes.size());
        chunk.data.push_back({SlabRef(data, bytes, [owner = std::move(run.owner)] {}), 0, bytes});
      }
    }
    if (plan_.provenance) {
      if (provenance_ == nullptr) {
        ASSIGN_OR_RETURN(provenance_, GroupProvenance());
      }
      chunk.provenance = provenance_;
    }
    ++place_.hook_points;
    SkipToNextChunk();
    chunk.resume_token = EncodeToken(plan_, place_);
    return chunk;
  }

  int64_t RecordedRow(int64_t row) const {
    return plan_.first_row + (plan_.order.has_value() ? (*plan_.order)[row] : row);
  }

  absl::StatusOr<SlabSpan> Gather(const Wanted& point, int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int64_t bytes = rows * point.row_bytes;
    std::shared_ptr<uint8_t> copy(new uint8_t[bytes], std::default_delete<uint8_t[]>());
    for (int64_t i = 0; i < rows; ++i) {
      RETURN_IF_ERROR(recording_->CopyRow(point.index, RecordedRow(place_.row + i), copy.get() + i * point.row_bytes));
    }
    uint8_t* data = copy.get();
    return SlabSpan{SlabRef(data, bytes, [owner = std::move(copy)] {}), 0, bytes};
  }

  absl::StatusOr<std::shared_ptr<const Provenance>> GroupProvenance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto provenance = std::make_shared<Provenance>();
    const int64_t rows = std::min(plan_.group_rows, plan_.most_rows - place_.row);
    for (int64_t i = 0; i < rows; ++i) {
      ASSIGN_OR_RETURN(const RecordingReader::Provenance row, recording_->ProvenanceOf(RecordedRow(place_.row + i)));
      provenance->sequence.push_back(row.sequence);
      provenance->position.push_back(row.position);
      provenance->token_id.push_back(row.token_id);
    }
    return std::shared_ptr<const Provenance>(std::move(provenance));
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

  const std::shared_ptr<const RecordingReader> recording_;
  const Plan plan_;
  const int64_t max_message_bytes_;
  const absl::Time begin_;
  absl::Mutex mutex_;
  Place place_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Provenance> provenance_ ABSL_GUARDED_BY(mutex_);  // of the row group at place_
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration wire_time_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request) {
  const Manifest& manifest = recording->manifest();
  const int64_t max_message_bytes = request.max_message_bytes == 0 ? kDefaultMessageBytes : request.max_message_bytes;
  if (max_message_bytes < kMinMessageBytes || max_message_bytes > kMaxMessageBytes) {
    return InvalidField("max_message_bytes",
                        absl::StrCat(request.max_message_bytes, " is not from ", kMinMessageBytes, " to ",
                                     kMaxMessageBytes, "; 0 means ", kDefaultMessageBytes));
  }
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
  plan.digest = XXH3_64bits(text.data(), text.size());
  Place place;
  if (!request.resume_token.empty()) {
    ASSIGN_OR_RETURN(place, DecodeToken(request.resume_token, plan));
  }
  return std::make_shared<Replay>(std::move(recording), std::move(plan), place, max_message_bytes);
}

}  // namespace hookline
