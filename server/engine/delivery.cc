#include "server/engine/delivery.h"

#include <algorithm>
#include <utility>

#include "server/capture/selection.h"

namespace hookline {

Delivery::Delivery(const Recipient& recipient, int64_t turn, Items items)
    : recipient_(recipient), turn_(turn), items_(std::move(items)), packing_(recipient.plan->limits.slab_bytes) {}

std::unique_ptr<Delivery> Delivery::Plan(Batch::Member* member, Items items) {
  const CapturePlan& plan = *member->recipient.plan;
  std::unique_ptr<Delivery> delivery(new Delivery(member->recipient, member->turn, std::move(items)));
  delivery->first_row_ = member->cursor.next_row;
  delivery->SelectRows(*member);
  const int64_t rows = delivery->rows();
  if (rows == 0) return nullptr;
  // After a resume inside a row group, the rows of it that are sent again are a group of their own.
  const int64_t regroup_end = plan.position.rows + plan.position.group_rows;
  const int64_t regroup_rows = std::clamp<int64_t>(regroup_end - delivery->first_row_, 0, rows);
  delivery->CutGroups(0, regroup_rows);
  delivery->CutGroups(regroup_rows, rows - regroup_rows);
  member->cursor.next_row += rows;
  if (delivery->groups_.empty()) return nullptr;
  delivery->staged_.resize(plan.hook_points.size());
  for (Group& group : delivery->groups_) group.position = delivery->PositionBefore(group.first);
  return delivery;
}

// Sets the end, too, from the last sequence of the flow.
void Delivery::SelectRows(const Batch::Member& member) {
  const CapturePlan& plan = *recipient_.plan;
  const ResumePosition& skip_until = member.cursor.skip_until;
  const int64_t wanted = plan.max_budget - first_row_;
  std::vector<int32_t> positions;
  for (size_t i = 0; i < items_->size() && rows() < wanted; ++i) {
    const BatchItem& item = (*items_)[i];
    if (item.flow != member.flow) continue;
    const Sequence& sequence = item.sequence;
    end_.sequence = sequence.count + 1;
    end_.batch_sequence = item.next_batch_sequence;
    end_.batch_sequences = item.next_batch_sequences;
    if (sequence.count < skip_until.sequence) continue;
    positions.clear();
    SelectPositions(plan.selection, sequence.index, sequence.ids, &positions);
    const int64_t sent = sequence.count == skip_until.sequence ? skip_until.sequence_rows : 0;
    for (int64_t rank = sent; rank < static_cast<int64_t>(positions.size()) && rows() < wanted; ++rank) {
      origins_.push_back({sequence.count, sequence.index, positions[rank], sequence.ids[positions[rank]], rank, i});
    }
  }
  end_.rows = first_row_ + rows();
}

// Cuts rows [first, first + rows) into as few groups as possible, of nearly equal size.
void Delivery::CutGroups(int64_t first, int64_t rows) {
  const CapturePlan& plan = *recipient_.plan;
  const int64_t count = (rows + plan.group_rows - 1) / plan.group_rows;
  for (int64_t i = 0; i < count; ++i) {
    Group group;
    group.first = first + rows * i / count;
    group.rows = first + rows * (i + 1) / count - group.first;
    for (size_t h = 0; h < plan.hook_points.size(); ++h) {
      const int64_t begin = std::max(first_row_ + group.first, plan.hook_points[h].start);
      const int64_t end = std::min(first_row_ + group.first + group.rows, plan.hook_points[h].budget);
      if (begin >= end) continue;
      group.chunks.push_back({static_cast<int>(h), begin - first_row_, end - begin, {}});
    }
    if (!group.chunks.empty()) groups_.push_back(std::move(group));
  }
}

ResumePosition Delivery::PositionBefore(int64_t row) const {
  ResumePosition position;
  const Origin& origin = origins_[row];
  position.rows = first_row_ + row;
  position.sequence = origin.count;
  position.sequence_rows = origin.rank;
  position.batch_sequence = (*items_)[origin.item].batch_sequence;
  position.batch_sequences = (*items_)[origin.item].batch_sequences;
  return position;
}

int64_t Delivery::RowsOf(int hook_point) const {
  // Rows are in the order of the groups, so the last group with the hook point tells how many it takes.
  for (auto group = groups_.rbegin(); group != groups_.rend(); ++group) {
    for (const PlacedChunk& chunk : group->chunks) {
      if (chunk.hook_point == hook_point) return chunk.first + chunk.rows;
    }
  }
  return 0;
}

int64_t Delivery::RowsBefore(size_t item) const {
  const auto end = std::partition_point(origins_.begin(), origins_.end(),
                                        [item](const Origin& origin) { return origin.item < item; });
  return end - origins_.begin();
}

int64_t Delivery::UnplacedBytes() const {
  int64_t bytes = 0;
  for (size_t i = placed_; i < groups_.size(); ++i) {
    for (const PlacedChunk& chunk : groups_[i].chunks) bytes += chunk.rows * RowBytes(chunk);
  }
  return bytes;
}

int64_t Delivery::Bytes() const {
  int64_t bytes = 0;
  for (const Group& group : groups_) {
    for (const PlacedChunk& chunk : group.chunks) bytes += chunk.rows * RowBytes(chunk);
  }
  return bytes;
}

bool Delivery::NextGroupFits() const {
  RowPacking trial = packing_;
  for (const PlacedChunk& chunk : groups_[placed_].chunks) trial.Skip(chunk.rows, RowBytes(chunk));
  return trial.slabs() - packing_.slabs() <= recipient_.window->free_slabs();
}

void Delivery::AssignSlabs() {
  for (; placed_ < groups_.size() && NextGroupFits(); ++placed_) {
    for (PlacedChunk& chunk : groups_[placed_].chunks) {
      const int64_t row_bytes = RowBytes(chunk);
      packing_.Add(chunk.rows, row_bytes, [&](const RowPacking::Piece& piece) {
        if (piece.opens_slab) open_slab_ = recipient_.window->Take();
        chunk.spans.push_back({open_slab_, piece.offset, piece.rows * row_bytes});
      });
    }
  }
  if (all_placed()) open_slab_.reset();
}

absl::Status Delivery::Stage(int hook_point, int64_t first, int64_t count, std::shared_ptr<StagedRows> rows,
                             Transfer* transfer) {
  Piece& piece = staged_[hook_point].emplace_back();
  piece.first = first;
  piece.end = first + count;
  piece.rows = std::move(rows);
  return StartCopies(hook_point, piece, queued_, transfer);
}

void Delivery::Unstage(int64_t first) {
  complete_ = std::min(complete_, first);
  for (std::vector<Piece>& pieces : staged_) {
    while (!pieces.empty() && pieces.back().first >= first) pieces.pop_back();
  }
}

void Delivery::EndAt(int64_t end) {
  is_cut_ = true;
  end_ = PositionBefore(end);
  while (!groups_.empty() && groups_.back().first >= end) groups_.pop_back();
  placed_ = std::min(placed_, groups_.size());
  if (groups_.empty()) return;
  Group& last = groups_.back();
  last.rows = std::min(last.rows, end - last.first);
  const auto begins_later = [end](const PlacedChunk& chunk) { return chunk.first >= end; };
  last.chunks.erase(std::remove_if(last.chunks.begin(), last.chunks.end(), begins_later), last.chunks.end());
  for (PlacedChunk& chunk : last.chunks) {
    chunk.rows = std::min(chunk.rows, end - chunk.first);
    int64_t bytes = chunk.rows * RowBytes(chunk);
    for (SlabSpan& span : chunk.spans) {
      span.bytes = std::min(span.bytes, bytes);
      bytes -= span.bytes;
    }
    while (!chunk.spans.empty() && chunk.spans.back().bytes == 0) chunk.spans.pop_back();
  }
  if (last.chunks.empty()) groups_.pop_back();
  placed_ = std::min(placed_, groups_.size());
}

void Delivery::DropCopied() {
  const int64_t copied = all_placed() ? rows() : groups_[placed_].first;
  for (std::vector<Piece>& pieces : staged_) {
    for (Piece& piece : pieces) {
      if (piece.rows == nullptr || piece.end > copied) continue;
      piece.loss = piece.rows->TakeLoss();
      piece.rows.reset();
    }
  }
}

absl::Status Delivery::CopyMore(Transfer* transfer) {
  const size_t first_group = placed_;
  AssignSlabs();
  absl::Status status;
  for (size_t h = 0; h < staged_.size(); ++h) {
    for (const Piece& piece : staged_[h]) {
      if (status.ok()) status = StartCopies(static_cast<int>(h), piece, first_group, transfer);
    }
  }
  return status;
}

// Starts the copies of one hook point's rows from one pass, for the groups from `first_group` on that have slabs.
absl::Status Delivery::StartCopies(int hook_point, const Piece& piece, size_t first_group, Transfer* transfer) {
  if (piece.rows == nullptr) return absl::OkStatus();
  absl::Status status;
  for (size_t g = first_group; g < placed_; ++g) {
    for (const PlacedChunk& chunk : groups_[g].chunks) {
      if (chunk.hook_point != hook_point) continue;
      int64_t first = chunk.first;
      for (size_t i = 0; i < chunk.spans.size() && status.ok();) {
        // Slabs that happen to be neighbours are one copy.
        uint8_t* const begin = chunk.spans[i].data();
        int64_t bytes = 0;
        for (; i < chunk.spans.size() && chunk.spans[i].data() == begin + bytes; ++i) bytes += chunk.spans[i].bytes;
        const int64_t end = first + bytes / RowBytes(chunk);
        const int64_t from = std::max(first, piece.first), to = std::min(end, piece.end);
        if (from < to) {
          status = transfer->Copy(*piece.rows, from - piece.first, to - from, begin + (from - first) * RowBytes(chunk));
        }
        first = end;
      }
    }
  }
  if (status.ok() && !all_placed() && groups_[placed_].first < piece.end) {
    status = piece.rows->DropBefore(std::max<int64_t>(0, groups_[placed_].first - piece.first));
  }
  return status;
}

// Reads the rows themselves if a span's rows come from several pieces, or if the device kept no sums of them.
void Delivery::AddStatistics(const PlacedChunk& placed, const RowLayout& layout, RowStatistics* statistics) const {
  int64_t first = placed.first;
  for (const SlabSpan& span : placed.spans) {
    const int64_t rows = span.bytes / layout.bytes();
    StagedSums known;
    for (const Piece& piece : staged_[placed.hook_point]) {
      const bool has_all = piece.rows != nullptr && piece.first <= first && first + rows <= piece.end;
      if (has_all) known = piece.rows->Sums(first - piece.first, rows);
    }
    statistics->Add(span.data(), rows, layout, known);
    first += rows;
  }
}

std::vector<QueuedChunk> Delivery::TakeGroup() {
  const CapturePlan& plan = *recipient_.plan;
  Group& group = groups_[queued_];
  const std::shared_ptr<const Provenance> provenance = plan.provenance ? ProvenanceOf(group) : nullptr;
  std::vector<QueuedChunk> chunks;
  for (PlacedChunk& placed : group.chunks) {
    const CapturePlan::HookPoint& hook_point = plan.hook_points[placed.hook_point];
    QueuedChunk queued;
    AddStatistics(placed, hook_point.layout, &queued.statistics);
    for (Piece& piece : staged_[placed.hook_point]) {
      queued.statistics.Add(piece.rows != nullptr ? piece.rows->TakeLoss() : std::exchange(piece.loss, {}));
    }
    Chunk& chunk = queued.chunk;
    chunk.hook_point = placed.hook_point;
    chunk.first_row = first_row_ + placed.first;
    chunk.rows = placed.rows;
    chunk.data = std::move(placed.spans);
    chunk.provenance = provenance;
    chunk.resume_token = EncodeResumeToken(plan.digests, PositionAfter(queued_, placed));
    chunks.push_back(std::move(queued));
  }
  ++queued_;
  return chunks;
}

ResumePosition Delivery::PositionAfter(size_t group, const PlacedChunk& chunk) const {
  if (&chunk == &groups_[group].chunks.back()) {
    return group + 1 < groups_.size() ? groups_[group + 1].position : end_;
  }
  ResumePosition position = groups_[group].position;
  position.group_rows = groups_[group].rows;
  position.group_hook_points = chunk.hook_point + 1;
  return position;
}

std::shared_ptr<const Provenance> Delivery::ProvenanceOf(const Group& group) const {
  auto provenance = std::make_shared<Provenance>();
  for (int64_t i = group.first; i < group.first + group.rows; ++i) {
    provenance->sequence.push_back(origins_[i].sequence);
    provenance->position.push_back(origins_[i].position);
    provenance->token_id.push_back(origins_[i].token_id);
  }
  return provenance;
}

}  // namespace hookline
