#include "server/capture/answer_cursor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

AnswerCursor::AnswerCursor(const ScorePlan& plan, const ScoreUnit& unit, std::vector<AskedRows>* asked)
    : plan_(plan), asked_(*asked) {
  for (const AskedRows& one : asked_) {
    const int64_t sequence = unit.first_sequence + static_cast<int64_t>(one.sequence);
    Place& place = places_.emplace_back();
    place.sequence = plan.index(sequence);
    place.variant = unit.first_variant + one.variant;
    place.tokens = plan.length(sequence);
    place.width = static_cast<int64_t>(one.rows.size()) / place.tokens;
    place.hook_point = plan.replaced_names[place.variant][one.intervention];
  }
}

std::vector<RowsAsked> AnswerCursor::TakeRows(const std::vector<std::vector<uint32_t>>& sequences) {
  std::vector<RowsAsked> taken;
  for (size_t i = 0; i < asked_.size(); ++i) {
    AskedRows& one = asked_[i];
    RowsAsked& rows = taken.emplace_back();
    rows.sequence = places_[i].sequence;
    rows.variant = places_[i].variant;
    rows.intervention = one.intervention;
    rows.width = places_[i].width;
    rows.token_ids = sequences[one.sequence];
    rows.rows = std::exchange(one.rows, {});
    rows.last = i + 1 == asked_.size();
  }
  return taken;
}

std::string AnswerCursor::Description() const {
  const Place& place = places_[next_];
  return absl::StrCat("the rows of sequence ", place.sequence, " under variant \"", plan_.variants[place.variant].name,
                      "\" at ", place.hook_point, " from position ", next_position_, " on");
}

absl::Status AnswerCursor::CheckPlace(const RowsAnswer& answer) const {
  const Place& place = places_[next_];
  const auto wrong = [&](absl::string_view field, absl::string_view given) {
    return InvalidField(absl::StrCat("answer.", field), absl::StrCat(given, " is not what is next: ", Description()));
  };
  if (answer.sequence != place.sequence) return wrong("sequence", absl::StrCat(answer.sequence));
  if (answer.variant != plan_.variants[place.variant].name) {
    return wrong("variant", absl::StrCat("\"", answer.variant, "\""));
  }
  if (answer.hook_point != place.hook_point) return wrong("hook_point", absl::StrCat("\"", answer.hook_point, "\""));
  if (answer.first_position != next_position_) return wrong("first_position", absl::StrCat(answer.first_position));
  const int64_t left = place.tokens - next_position_;
  if (answer.rows < 1 || answer.rows > left) {
    return InvalidField("answer.rows",
                        absl::StrCat(answer.rows, " is not from 1 to ", left, "; what is left: ", Description()));
  }
  return absl::OkStatus();
}

absl::Status AnswerCursor::CheckValues(const RowsAnswer& answer) const {
  const int64_t width = places_[next_].width;
  if (!answer.mask.empty() && static_cast<int64_t>(answer.mask.size()) != answer.rows) {
    return InvalidField("answer.mask", absl::StrCat("has ", answer.mask.size(), " entries for ", answer.rows,
                                                    " rows; give one for each, or none"));
  }
  const int64_t replaced = answer.mask.empty() ? answer.rows : std::count(answer.mask.begin(), answer.mask.end(), true);
  if (static_cast<int64_t>(answer.values.size()) != replaced * width) {
    return InvalidField("answer.data", absl::StrCat("has ", answer.values.size(), " values, but ", replaced,
                                                    " rows of ", width, " values have ", replaced * width));
  }
  for (size_t i = 0; i < answer.values.size(); ++i) {
    if (std::isfinite(answer.values[i])) continue;
    const int64_t row = static_cast<int64_t>(i) / width;
    return InvalidField("answer.data", absl::StrCat(answer.values[i], " in replaced row ", row, ", value ",
                                                    static_cast<int64_t>(i) % width, ", is not finite"));
  }
  return absl::OkStatus();
}

absl::Status AnswerCursor::Add(const RowsAnswer& answer) {
  RETURN_IF_ERROR(CheckPlace(answer));
  RETURN_IF_ERROR(CheckValues(answer));
  const Place& place = places_[next_];
  const size_t width = static_cast<size_t>(place.width), tokens = static_cast<size_t>(place.tokens);
  AskedRows& one = asked_[next_];
  one.rows.resize(tokens * width);
  one.mask.resize(tokens, false);
  size_t from = 0;  // index into the values
  for (size_t i = 0; i < static_cast<size_t>(answer.rows); ++i) {
    if (!answer.mask.empty() && !answer.mask[i]) continue;
    const size_t position = static_cast<size_t>(next_position_) + i;
    std::copy_n(answer.values.begin() + static_cast<int64_t>(from), width,
                one.rows.begin() + static_cast<int64_t>(position * width));
    one.mask[position] = true;
    from += width;
  }
  next_position_ += answer.rows;
  if (next_position_ == place.tokens) {
    next_position_ = 0;
    ++next_;
  }
  return absl::OkStatus();
}

}  // namespace hookline
