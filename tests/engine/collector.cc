#include "tests/engine/collector.h"

#include <algorithm>
#include <utility>

#include "server/base/row_values.h"
#include "tests/engine/fake_model.h"

namespace hookline {
namespace {

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Collector::Collector(Engine& engine, CaptureRequest request, const std::string& address) {
  absl::StatusOr<CapturePlan> plan = engine.Plan(std::move(request));
  status_ = plan.status();
  if (!plan.ok()) return;
  auto capture = engine.Start(*std::move(plan), address,
                              {[this] {
                                 absl::MutexLock lock(&mutex_);
                                 ready_ = true;
                               },
                               [this] {
                                 absl::MutexLock lock(&mutex_);
                                 room_ = true;
                               }});
  status_ = capture.status();
  if (capture.ok()) capture_ = *std::move(capture);
}

bool Collector::ReadOne() {
  if (collected_.ended.has_value()) return false;
  std::optional<CaptureEvent> event;
  while (!(event = capture_->Next()).has_value()) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&ready_));
    ready_ = false;
  }
  if (auto* started = std::get_if<CaptureStarted>(&*event)) {
    collected_.hook_points.resize(started->hook_points.size());
    collected_.started = std::move(*started);
  } else if (auto* chunk = std::get_if<Chunk>(&*event)) {
    Collected::Rows& rows = collected_.hook_points[chunk->hook_point];
    std::vector<uint8_t> bytes;
    for (const SlabSpan& span : chunk->data) bytes.insert(bytes.end(), span.data(), span.data() + span.bytes);
    const RowLayout layout{collected_.started->dtype, collected_.started->hook_points[chunk->hook_point].width,
                           collected_.started->top_k};
    const uint8_t* p = bytes.data();
    for (int64_t i = 0; i < chunk->rows; ++i, p += layout.bytes()) {
      ReadValues(layout, p, rows.values.emplace_back(layout.numbers()).data());
      ReadIndices(layout, p, rows.indices.emplace_back(layout.top_k).data());
      if (chunk->provenance != nullptr) {
        rows.sequence.push_back(chunk->provenance->sequence[i]);
        rows.position.push_back(chunk->provenance->position[i]);
        rows.token_id.push_back(chunk->provenance->token_id[i]);
      }
    }
    collected_.chunks.push_back({chunk->hook_point, chunk->first_row, chunk->rows, chunk->resume_token});
  } else {
    collected_.ended = std::get<CaptureEnded>(*std::move(event));
  }
  return true;
}

const Collected& Collector::ReadAll() {
  while (ReadOne()) {
  }
  return collected_;
}

const Collected& Collector::ReadChunks(int chunks) {
  const size_t wanted = collected_.chunks.size() + static_cast<size_t>(chunks);
  while (collected_.chunks.size() < wanted && ReadOne()) {
  }
  return collected_;
}

absl::Status Collector::Send(TokenBatch batch) {
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&room_));
    room_ = false;
  }
  auto room = capture_->AddSequences(std::move(batch));
  if (room.ok() && *room) {
    absl::MutexLock lock(&mutex_);
    room_ = true;
  }
  return room.status();
}

std::vector<Collected::Rows> Reference(const Model& model, const std::vector<std::string>& names,
                                       const std::vector<std::vector<uint32_t>>& sequences,
                                       const std::map<std::string, int64_t>& budgets, const Selection& selection,
                                       int64_t first_sequence) {
  std::vector<Collected::Rows> all(names.size());
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t sequence = first_sequence + static_cast<int64_t>(s);
    std::vector<int64_t> kept;
    for (int64_t t = 0; t < static_cast<int64_t>(sequences[s].size()); ++t) {
      if (t < selection.skip_first) continue;
      const int64_t length = static_cast<int64_t>(sequences[s].size());
      if (selection.position_end > 0 && t >= selection.position_end) continue;
      if (selection.position_end < 0 && t >= length + selection.position_end) continue;
      if ((t - selection.skip_first) % selection.position_stride != 0) continue;
      const auto& excluded = selection.exclude_token_ids;
      if (std::find(excluded.begin(), excluded.end(), sequences[s][t]) != excluded.end()) continue;
      kept.push_back(t);
    }
    if (selection.last_only && !kept.empty()) kept = {kept.back()};
    if (selection.sample_rows != 0 && static_cast<int64_t>(kept.size()) > selection.sample_rows) {
      std::vector<std::pair<uint64_t, int64_t>> keyed;
      for (int64_t t : kept) {
        keyed.emplace_back(Mix(Mix(Mix(selection.seed) + static_cast<uint64_t>(sequence)) + static_cast<uint64_t>(t)),
                           t);
      }
      std::sort(keyed.begin(), keyed.end());
      kept.clear();
      for (int64_t i = 0; i < selection.sample_rows; ++i) kept.push_back(keyed[i].second);
      std::sort(kept.begin(), kept.end());
    }
    for (int64_t t : kept) {
      for (size_t h = 0; h < names.size(); ++h) {
        if (static_cast<int64_t>(all[h].values.size()) >= budgets.at(names[h])) continue;
        const int hook_point = model.hook_points().Find(names[h]);
        std::vector<float> row;
        for (int64_t j = 0; j < model.hook_points()[hook_point].width; ++j) {
          row.push_back(FakeModel::Value(hook_point, sequences[s][t], t, j));
        }
        all[h].values.push_back(std::move(row));
        all[h].sequence.push_back(sequence);
        all[h].position.push_back(static_cast<int32_t>(t));
        all[h].token_id.push_back(sequences[s][t]);
      }
    }
  }
  return all;
}

}  // namespace hookline
