#include "server/engine/score_run.h"

#include <utility>

#include "server/base/status.h"
#include "server/base/steady.h"

namespace hookline {

ScoreRun::ScoreRun(std::shared_ptr<const ScorePlan> plan, std::function<void()> on_ready)
    : plan_(std::move(plan)), begun_(SteadyNow()), on_ready_(std::move(on_ready)), waiting_since_(begun_) {
  totals_.variants.resize(1 + plan_->variants.size());
  for (size_t v = 0; v < plan_->variants.size(); ++v) {
    totals_.variants[1 + v].replaced.resize(plan_->variants[v].interventions.size());
  }
  events_.push_back(ScoreStarted{plan_});
}

int64_t ScoreRun::NextPositions() const {
  absl::MutexLock lock(&mutex_);
  if (!MayRun()) return 0;
  return plan_->Unit(next_sequence_, next_variant_).positions;
}

bool ScoreRun::MayRun() const { return phase_ == Phase::kReady && events_.size() <= 1 + last_pass_events_ / 2; }

absl::Status ScoreRun::RunNext(Model& model) {
  ScoreUnit unit;
  const absl::Time start = SteadyNow();
  {
    absl::MutexLock lock(&mutex_);
    if (!MayRun()) return absl::OkStatus();
    phase_ = Phase::kRunning;
    unit = plan_->Unit(next_sequence_, next_variant_);
    totals_.queue_time += start - waiting_since_;
  }
  std::vector<std::vector<uint32_t>> sequences;
  std::vector<VariantScores> scores;
  const absl::Status status = Compute(model, unit, &sequences, &scores);
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kRunning) return status;
    phase_ = Phase::kReady;
    waiting_since_ = SteadyNow();
    totals_.forward_time += waiting_since_ - start;
    if (!status.ok()) {
      EndLocked(status);
    } else {
      Take(unit, sequences, std::move(scores));
    }
  }
  CallOnReady();
  return status;
}

absl::Status ScoreRun::Compute(Model& model, const ScoreUnit& unit, std::vector<std::vector<uint32_t>>* sequences,
                               std::vector<VariantScores>* scores) const {
  for (int64_t i = unit.first_sequence; i < unit.first_sequence + unit.sequences; ++i) {
    std::vector<uint32_t>& ids = sequences->emplace_back();
    if (plan_->dataset.dataset != nullptr) {
      RETURN_IF_ERROR(plan_->dataset.Read(plan_->index(i), model.info().vocabulary_size, &ids));
    } else {
      ids.assign(plan_->tokens[i].begin(), plan_->tokens[i].end());
    }
  }
  std::vector<const Variant*> variants;
  for (size_t v = 0; v < unit.variants; ++v) variants.push_back(&plan_->variants[unit.first_variant + v]);
  ASSIGN_OR_RETURN(*scores, RunScorePass(model, {*sequences, variants, &plan_->outputs}));
  return absl::OkStatus();
}

// If a sequence's variants take several passes, the clean pass counts once.
void ScoreRun::Take(const ScoreUnit& unit, const std::vector<std::vector<uint32_t>>& sequences,
                    std::vector<VariantScores> scores) {
  const size_t before = events_.size();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t tokens = static_cast<int64_t>(sequences[i].size());
    for (size_t s = unit.first_variant == 0 ? 0 : 1; s < scores.size(); ++s) {
      const size_t variant = s == 0 ? 0 : s + unit.first_variant;
      SequenceScore& score = scores[s].sequences[i];
      VariantTotals& totals = totals_.variants[variant];
      totals.loss_sum += score.loss_sum;
      totals.predictions += plan_->outputs.rows_only ? 0 : tokens - 1;
      totals.kl_sum += score.kl_sum;
      totals.tokens += tokens;
      if (variant > plan_->sent_variants) continue;
      events_.push_back(ScoredSequence{plan_->index(unit.first_sequence + static_cast<int64_t>(i)), tokens, variant,
                                       std::move(score)});
    }
    if (unit.first_variant == 0) {
      ++totals_.sequences;
      totals_.tokens += tokens;
    }
  }
  for (size_t s = 1; s < scores.size(); ++s) {
    std::vector<ReplacedRows>& replaced = totals_.variants[s + unit.first_variant].replaced;
    for (size_t i = 0; i < replaced.size(); ++i) replaced[i].Add(scores[s].replaced[i]);
  }
  last_pass_events_ = events_.size() - before;
  next_variant_ = unit.first_variant + unit.variants;
  if (next_variant_ < plan_->variants.size()) return;
  next_variant_ = 0;
  next_sequence_ = unit.first_sequence + unit.sequences;
  if (next_sequence_ >= plan_->sequences()) EndLocked(absl::OkStatus());
}

void ScoreRun::End(absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) return;
    EndLocked(std::move(status));
  }
  CallOnReady();
}

void ScoreRun::EndLocked(absl::Status status) {
  phase_ = Phase::kEnded;
  totals_.status = std::move(status);
  totals_.total_time = SteadyNow() - begun_;
  events_.push_back(std::move(totals_));
}

std::optional<ScoreEvent> ScoreRun::Next() {
  absl::MutexLock lock(&mutex_);
  std::optional<ScoreEvent> event;
  if (events_.empty()) return event;
  event.emplace(std::move(events_.front()));
  events_.pop_front();
  return event;
}

void ScoreRun::Close() {
  {
    absl::MutexLock lock(&mutex_);
    phase_ = Phase::kEnded;
    events_.clear();
  }
  absl::MutexLock lock(&callback_mutex_);
  on_ready_ = nullptr;
}

void ScoreRun::CallOnReady() {
  absl::MutexLock lock(&callback_mutex_);
  if (on_ready_ != nullptr) on_ready_();
}

}  // namespace hookline
