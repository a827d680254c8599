#include "server/engine/top_activations_run.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/model/dictionary/latent_pass.h"

namespace hookline {

TopActivationsRun::TopActivationsRun(std::shared_ptr<const TopActivationsPlan> plan, std::function<void()> on_ready)
    : plan_(std::move(plan)),
      begun_(SteadyNow()),
      records_(plan_->records),
      ignored_tokens_(plan_->resumed_ignored_tokens),
      on_ready_(std::move(on_ready)),
      next_sequence_(plan_->resumed_sequences),
      next_checkpoint_(plan_->resumed_sequences + plan_->checkpoint_sequences),
      waiting_since_(begun_),
      started_(TopActivationsStarted{plan_}) {
  if (next_sequence_ < plan_->sequences()) return;
  // The checkpoint was the last one.
  ended_.found = Found(next_sequence_);
  EndLocked(absl::OkStatus());
}

DeviceRun::Need TopActivationsRun::GetNeed() const {
  absl::MutexLock lock(&mutex_);
  Need need;
  if (phase_ == Phase::kReady) need.positions = plan_->SequencesOfPass(next_sequence_) * plan_->dataset.length();
  return need;
}

void TopActivationsRun::RunNext(Model& model, std::unique_ptr<PauseRoom> /*room*/, Judge judge) {
  const absl::Time start = SteadyNow();
  int64_t first = 0, end = 0;
  bool is_checkpoint = false;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kReady) return;
    phase_ = Phase::kRunning;
    first = next_sequence_;
    end = first + plan_->SequencesOfPass(first);
    is_checkpoint = plan_->checkpoint_sequences > 0 && end >= next_checkpoint_;
    ended_.queue_time += start - waiting_since_;
  }
  absl::Status status = AddPass(model, first, end - first);
  const bool is_lost = IsLost(judge, &status);
  const bool is_last = end == plan_->sequences();
  std::optional<TopActivationsCheckpoint> found;
  if (status.ok() && (is_checkpoint || is_last)) found = Found(end);
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kRunning) return;
    phase_ = Phase::kReady;
    waiting_since_ = SteadyNow();
    ended_.forward_time += waiting_since_ - start;
    if (is_lost) return;
    next_sequence_ = end;
    if (!status.ok() || is_last) {
      if (found.has_value()) ended_.found = *std::move(found);
      EndLocked(status);
    } else if (is_checkpoint) {
      next_checkpoint_ = end + plan_->checkpoint_sequences;
      checkpoint_ = std::move(found);
    } else {
      return;
    }
  }
  CallOnReady();
}

absl::Status TopActivationsRun::AddPass(Model& model, int64_t first_sequence, int64_t sequences) {
  const DatasetRange& range = plan_->dataset;
  std::vector<int64_t> indices;
  std::vector<std::vector<uint32_t>> ids(static_cast<size_t>(sequences));
  for (int64_t i = 0; i < sequences; ++i) {
    indices.push_back(range.SequenceAt(range.begin() + first_sequence + i));
    RETURN_IF_ERROR(range.Read(indices.back(), model.info().vocabulary_size, &ids[static_cast<size_t>(i)]));
  }
  ASSIGN_OR_RETURN(std::vector<float> values, RunLatentPass(model, ids, plan_->dictionary, plan_->latents));
  const auto length = static_cast<size_t>(range.length());
  for (size_t i = 0; i < ids.size(); ++i) {
    for (size_t t = 0; t < length; ++t) {
      if (!std::binary_search(plan_->ignored_ids.begin(), plan_->ignored_ids.end(), ids[i][t])) continue;
      ++ignored_tokens_;
      for (size_t l = 0; l < records_.size(); ++l) values[(l * ids.size() + i) * length + t] = 0;
    }
  }
  for (size_t l = 0; l < records_.size(); ++l) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const absl::Span<const float> row = absl::MakeConstSpan(values).subspan((l * ids.size() + i) * length, length);
      records_[l].Add(indices[i], ids[i], row);
    }
  }
  return absl::OkStatus();
}

TopActivationsCheckpoint TopActivationsRun::Found(int64_t sequences) const {
  TopActivationsCheckpoint found;
  found.digest = plan_->digest;
  found.sequences = sequences;
  found.ignored_tokens = ignored_tokens_;
  for (size_t l = 0; l < records_.size(); ++l) found.latents.push_back({plan_->latents[l], records_[l].findings()});
  return found;
}

void TopActivationsRun::End(absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) return;
    EndLocked(std::move(status));
  }
  CallOnReady();
}

void TopActivationsRun::EndLocked(absl::Status status) {
  phase_ = Phase::kEnded;
  has_ended_ = true;
  ended_.status = std::move(status);
  ended_.tokens = plan_->sequences() * plan_->dataset.length();
  ended_.total_time = SteadyNow() - begun_;
}

std::optional<TopActivationsEvent> TopActivationsRun::Next() {
  absl::MutexLock lock(&mutex_);
  std::optional<TopActivationsEvent> event;
  if (started_.has_value()) {
    event = *std::exchange(started_, std::nullopt);
  } else if (checkpoint_.has_value()) {
    event = *std::exchange(checkpoint_, std::nullopt);
  } else if (has_ended_) {
    has_ended_ = false;
    event = std::move(ended_);
  }
  return event;
}

void TopActivationsRun::Close() {
  {
    absl::MutexLock lock(&mutex_);
    phase_ = Phase::kEnded;
    started_.reset();
    checkpoint_.reset();
    has_ended_ = false;
  }
  absl::MutexLock lock(&callback_mutex_);
  on_ready_ = nullptr;
}

void TopActivationsRun::CallOnReady() {
  absl::MutexLock lock(&callback_mutex_);
  if (on_ready_ != nullptr) on_ready_();
}

}  // namespace hookline
