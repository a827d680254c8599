#include "server/capture/delivery.h"

#include <algorithm>
#include <utility>

#include "server/capture/selection.h"

namespace hookline {
namespace {

// The place before row `row` of the delivery (into origins; its length: after the last).
ResumePosition PositionBefore(const Delivery& delivery, int64_t row, absl::Span<const BatchItem> items) {
  ResumePosition position;
  const Delivery::Origin& origin = delivery.origins[row];
  position.rows = delivery.first_row + row;
  position.sequence = origin.sequence;
  position.sequence_rows = origin.rank;
  position.batch_sequence = items[origin.item].batch_sequence;
  position.batch_sequences = items[origin.item].batch_sequences;
  return position;
}

// Cuts rows [first, first + rows) into as few groups of at most `most` as possible, of nearly equal size.
void AddGroups(int64_t first, int64_t rows, int64_t most, Delivery* delivery) {
  const int64_t count = (rows + most - 1) / most;
  for (int64_t i = 0; i < count; ++i) {
    Delivery::Group group;
    group.first = first + rows * i / count;
    group.rows = first + rows * (i + 1) / count - group.first;
    const std::vector<CapturePlan::HookPoint>& hook_points = delivery->capture->plan.hook_points;
    for (size_t h = 0; h < hook_points.size(); ++h) {
      const int64_t begin = std::max(delivery->first_row + group.first, hook_points[h].start);
      const int64_t end = std::min(delivery->first_row + group.first + group.rows, hook_points[h].budget);
      if (begin >= end) continue;
      group.chunks.push_back({static_cast<int>(h), begin - delivery->first_row, end - begin, {}});
    }
    if (!group.chunks.empty()) delivery->groups.push_back(std::move(group));
  }
}

// Slabs that the group takes beyond the one that is open.
int64_t SlabsFor(const Delivery& delivery, const Delivery::Group& group, int64_t slab_bytes) {
  int64_t slabs = 0;
  int64_t room = delivery.open_slab ? slab_bytes - delivery.open_slab_used : 0;
  for (const Delivery::PlacedChunk& chunk : group.chunks) {
    const int64_t row_bytes = delivery.capture->plan.hook_points[chunk.hook_point].row_bytes;
    const int64_t left = chunk.rows - std::min(chunk.rows, room / row_bytes);
    room -= (chunk.rows - left) * row_bytes;
    if (left == 0) continue;
    const int64_t per_slab = slab_bytes / row_bytes;
    const int64_t more = (left + per_slab - 1) / per_slab;
    slabs += more;
    room = slab_bytes - (left - (more - 1) * per_slab) * row_bytes;
  }
  return slabs;
}

}  // namespace

int64_t Delivery::UnplacedBytes() const {
  int64_t bytes = 0;
  for (size_t i = placed; i < groups.size(); ++i) {
    for (const PlacedChunk& chunk : groups[i].chunks) {
      bytes += chunk.rows * capture->plan.hook_points[chunk.hook_point].row_bytes;
    }
  }
  return bytes;
}

std::unique_ptr<Delivery> PlanDelivery(const std::shared_ptr<RunningCapture>& capture, const Lane* lane,
                                       absl::Span<const BatchItem> items) {
  const CapturePlan& plan = capture->plan;
  auto delivery = std::make_unique<Delivery>();
  delivery->capture = capture;
  delivery->first_row = capture->next_row;
  const int64_t wanted = plan.max_budget - capture->next_row;
  const BatchItem* last = nullptr;
  std::vector<int32_t> positions;
  for (size_t i = 0; i < items.size() && delivery->rows() < wanted; ++i) {
    const BatchItem& item = items[i];
    if (item.lane != lane) continue;
    last = &item;
    const Sequence& sequence = item.sequence;
    if (sequence.index < capture->skip_until.sequence) continue;
    positions.clear();
    SelectPositions(plan.selection, sequence.index, sequence.ids, &positions);
    const int64_t sent = sequence.index == capture->skip_until.sequence ? capture->skip_until.sequence_rows : 0;
    for (int64_t rank = sent; rank < static_cast<int64_t>(positions.size()) && delivery->rows() < wanted; ++rank) {
      delivery->origins.push_back({sequence.index, positions[rank], sequence.ids[positions[rank]], rank, i});
    }
  }
  if (delivery->origins.empty()) return nullptr;

  const int64_t rows = delivery->rows();
  // A resume inside a row group: those of its rows that come again are a group of their own.
  const int64_t regroup_end = plan.position.rows + plan.position.group_rows;
  const int64_t regroup_rows = std::clamp<int64_t>(regroup_end - delivery->first_row, 0, rows);
  AddGroups(0, regroup_rows, plan.group_rows, delivery.get());
  AddGroups(regroup_rows, rows - regroup_rows, plan.group_rows, delivery.get());
  capture->next_row += rows;
  if (delivery->groups.empty()) return nullptr;
  delivery->staged.resize(plan.hook_points.size());

  delivery->end.rows = capture->next_row;
  delivery->end.sequence = last->sequence.index + 1;
  delivery->end.batch_sequence = last->next_batch_sequence;
  delivery->end.batch_sequences = last->next_batch_sequences;
  // What MakeChunks needs of the batch, which is gone by then.
  delivery->positions.reserve(delivery->groups.size());
  for (const Delivery::Group& group : delivery->groups) {
    delivery->positions.push_back(PositionBefore(*delivery, group.first, items));
  }
  return delivery;
}

bool NextGroupFits(const Delivery& delivery, int64_t slab_bytes) {
  return SlabsFor(delivery, delivery.groups[delivery.placed], slab_bytes) <= delivery.capture->window->free_slabs();
}

size_t PlaceGroups(Delivery& delivery, int64_t slab_bytes) {
  const CapturePlan& plan = delivery.capture->plan;
  SlabWindow& window = *delivery.capture->window;
  size_t count = 0;
  for (; delivery.placed < delivery.groups.size() && NextGroupFits(delivery, slab_bytes); ++delivery.placed, ++count) {
    Delivery::Group& group = delivery.groups[delivery.placed];
    for (Delivery::PlacedChunk& chunk : group.chunks) {
      const int64_t row_bytes = plan.hook_points[chunk.hook_point].row_bytes;
      for (int64_t left = chunk.rows; left > 0;) {
        int64_t fit = delivery.open_slab ? (slab_bytes - delivery.open_slab_used) / row_bytes : 0;
        if (fit == 0) {
          delivery.open_slab = window.Take();
          delivery.open_slab_used = 0;
          fit = slab_bytes / row_bytes;
        }
        const int64_t bytes = std::min(left, fit) * row_bytes;
        chunk.spans.push_back({delivery.open_slab, delivery.open_slab_used, bytes});
        delivery.open_slab_used += bytes;
        left -= std::min(left, fit);
      }
    }
  }
  if (delivery.placed == delivery.groups.size()) delivery.open_slab.reset();
  return count;
}

std::vector<QueuedChunk> MakeChunks(const Delivery& delivery, size_t group_index) {
  const CapturePlan& plan = delivery.capture->plan;
  const Delivery::Group& group = delivery.groups[group_index];
  const int64_t next = group.first + group.rows;
  std::shared_ptr<Provenance> provenance;
  std::vector<QueuedChunk> chunks;
  for (const Delivery::PlacedChunk& placed : group.chunks) {
    QueuedChunk queued;
    Chunk& chunk = queued.chunk;
    chunk.hook_point = placed.hook_point;
    chunk.first_row = delivery.first_row + placed.first;
    chunk.rows = placed.rows;
    chunk.data = placed.spans;
    const CapturePlan::HookPoint& hook_point = plan.hook_points[placed.hook_point];
    for (const SlabSpan& span : placed.spans) {
      queued.statistics.Add(span.data(), span.bytes / hook_point.row_bytes, hook_point.width, plan.dtype);
    }
    if (plan.provenance) {
      if (provenance == nullptr) {
        provenance = std::make_shared<Provenance>();
        for (int64_t i = group.first; i < next; ++i) {
          provenance->sequence.push_back(delivery.origins[i].sequence);
          provenance->position.push_back(delivery.origins[i].position);
          provenance->token_id.push_back(delivery.origins[i].token_id);
        }
      }
      chunk.provenance = provenance;
    }
    ResumePosition position;
    if (&placed == &group.chunks.back()) {
      position = group_index + 1 < delivery.groups.size() ? delivery.positions[group_index + 1] : delivery.end;
    } else {
      position = delivery.positions[group_index];
      position.group_rows = group.rows;
      position.group_hook_points = placed.hook_point + 1;
    }
    chunk.resume_token = EncodeResumeToken(plan.digests, position);
    chunks.push_back(std::move(queued));
  }
  return chunks;
}

}  // namespace hookline
