#include "server/engine/score_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
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

DeviceRun::Need ScoreRun::GetNeed() const {
  absl::MutexLock lock(&mutex_);
  Need need;
  if (phase_ == Phase::kAwaiting) need.answer_by = last_answer_ + plan_->answer_timeout;
  if (!MayRun()) return need;
  if (in_hand_ != nullptr) {
    need.positions = in_hand_->unit.positions;
    return need;
  }
  const ScoreUnit unit = plan_->Unit(next_sequence_, next_variant_);
  need.positions = unit.positions;
  if (plan_->max_paused_positions > 0) {
    need.paused = unit.positions;
    // Until it pauses, the pass runs the unchanged sequences only.
    need.positions = std::max<int64_t>(1, unit.positions / static_cast<int64_t>(1 + unit.variants));
  }
  return need;
}

bool ScoreRun::MayRun() const {
  return phase_ == Phase::kReady && (in_hand_ != nullptr || events_.size() <= 1 + last_pass_events_ / 2);
}

std::unique_ptr<ScoreRun::PassInHand> ScoreRun::NextHand(std::unique_ptr<PauseRoom> room) {
  absl::MutexLock lock(&mutex_);
  if (!MayRun()) return nullptr;
  std::unique_ptr<PassInHand> hand = std::move(in_hand_);
  if (hand == nullptr) {
    hand = std::make_unique<PassInHand>();
    hand->unit = plan_->Unit(next_sequence_, next_variant_);
    // The turn may have been given for what the run needed before.
    const bool has_room = room != nullptr && room->positions() >= hand->unit.positions;
    if (plan_->max_paused_positions > 0 && !has_room) return nullptr;
    hand->room = std::move(room);
  }
  phase_ = Phase::kRunning;
  return hand;
}

void ScoreRun::RunNext(Model& model, std::unique_ptr<PauseRoom> room, Judge judge) {
  const absl::Time start = SteadyNow();
  std::unique_ptr<PassInHand> hand = NextHand(std::move(room));
  if (hand == nullptr) return;
  absl::Status status = hand->pass == nullptr ? Begin(model, hand.get()) : absl::OkStatus();
  if (status.ok()) status = hand->pass->Run();
  const bool is_lost = IsLost(judge, &status);
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kRunning) return;
    phase_ = Phase::kReady;
    totals_.queue_time += start - waiting_since_;
    waiting_since_ = SteadyNow();
    totals_.forward_time += waiting_since_ - start;
    if (is_lost) {
      // The unit is dropped, and begins anew when it is its turn.
    } else if (!status.ok()) {
      ended = EndLocked(std::move(status));
    } else if (!hand->pass->asked.empty()) {
      Pause(std::move(hand));
      if (answers_finished_) ended = EndLocked(NoAnswers());
    } else {
      Take(*hand);
    }
  }
  hand.reset();
  ended.reset();
  CallOnReady();
}

absl::Status ScoreRun::Begin(Model& model, PassInHand* hand) const {
  const ScoreUnit& unit = hand->unit;
  for (int64_t i = unit.first_sequence; i < unit.first_sequence + unit.sequences; ++i) {
    std::vector<uint32_t>& ids = hand->sequences.emplace_back();
    if (plan_->dataset.dataset != nullptr) {
      RETURN_IF_ERROR(plan_->dataset.Read(plan_->index(i), model.info().vocabulary_size, &ids));
    } else {
      ids.assign(plan_->tokens[i].begin(), plan_->tokens[i].end());
    }
  }
  for (size_t v = 0; v < unit.variants; ++v) hand->variants.push_back(&plan_->variants[unit.first_variant + v]);
  ASSIGN_OR_RETURN(hand->pass, ScorePass::Make(model, {hand->sequences, hand->variants, &plan_->outputs}));
  return absl::OkStatus();
}

void ScoreRun::Pause(std::unique_ptr<PassInHand> hand) {
  phase_ = Phase::kAwaiting;
  in_hand_ = std::move(hand);
  answers_.emplace(*plan_, in_hand_->unit, &in_hand_->pass->asked);
  for (RowsAsked& rows : answers_->TakeRows(in_hand_->sequences)) events_.push_back(std::move(rows));
  asked_at_ = last_answer_ = waiting_since_;
}

absl::Status ScoreRun::NoAnswers() const {
  return InvalidField("answer", absl::StrCat("the stream has ended, but still owes ", answers_->Description()));
}

absl::Status ScoreRun::Answer(const RowsAnswer& answer) {
  absl::Status status;
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) return absl::OkStatus();
    status = answers_.has_value() ? answers_->Add(answer)
                                  : InvalidField("answer", "no rows are due; answer those of `asked`, once");
    if (!status.ok()) {
      ended = EndLocked(status);
    } else {
      last_answer_ = SteadyNow();
      if (!answers_->done()) return status;
      answers_.reset();
      phase_ = Phase::kReady;
      waiting_since_ = last_answer_;
      totals_.client_time += last_answer_ - asked_at_;
    }
  }
  ended.reset();
  if (!status.ok()) CallOnReady();
  return status;
}

void ScoreRun::FinishAnswers() {
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    answers_finished_ = true;
    if (phase_ != Phase::kAwaiting) return;
    ended = EndLocked(NoAnswers());
  }
  ended.reset();
  CallOnReady();
}

// If a sequence's variants take several passes, the clean pass counts once.
void ScoreRun::Take(PassInHand& hand) {
  const ScoreUnit& unit = hand.unit;
  const std::vector<std::vector<uint32_t>>& sequences = hand.sequences;
  std::vector<VariantScores>& scores = hand.pass->scores;
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
                                       std::move(score),
                                       s == 0 && plan_->outputs.token_loss ? sequences[i] : std::vector<uint32_t>()});
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
  if (next_sequence_ >= plan_->sequences()) (void)EndLocked(absl::OkStatus());
}

void ScoreRun::End(absl::Status status) {
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ == Phase::kEnded) return;
    ended = EndLocked(std::move(status));
  }
  ended.reset();
  CallOnReady();
}

void ScoreRun::EndIfSilent(absl::Time now) {
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    if (phase_ != Phase::kAwaiting || now < last_answer_ + plan_->answer_timeout) return;
    ended = EndLocked(absl::DeadlineExceededError(
        absl::StrCat("the client has answered nothing for ", absl::FormatDuration(plan_->answer_timeout),
                     " (--answer-timeout); it still owes ", answers_->Description())));
  }
  ended.reset();
  CallOnReady();
}

std::unique_ptr<ScoreRun::PassInHand> ScoreRun::EndLocked(absl::Status status) {
  phase_ = Phase::kEnded;
  answers_.reset();
  if (!status.ok()) {
    const auto is_asked = [](const ScoreEvent& event) { return std::holds_alternative<RowsAsked>(event); };
    events_.erase(std::remove_if(events_.begin(), events_.end(), is_asked), events_.end());
  }
  totals_.status = std::move(status);
  totals_.total_time = SteadyNow() - begun_;
  events_.push_back(std::move(totals_));
  return std::move(in_hand_);
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
  std::unique_ptr<PassInHand> ended;
  {
    absl::MutexLock lock(&mutex_);
    phase_ = Phase::kEnded;
    answers_.reset();
    ended = std::move(in_hand_);
    events_.clear();
  }
  ended.reset();
  absl::MutexLock lock(&callback_mutex_);
  on_ready_ = nullptr;
}

void ScoreRun::CallOnReady() {
  absl::MutexLock lock(&callback_mutex_);
  if (on_ready_ != nullptr) on_ready_();
}

}  // namespace hookline
