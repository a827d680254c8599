#include "server/capture/latent_record.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/half.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// The bits of binary32's fraction. Without them, each exponent has one bucket.
constexpr int kFractionBits = 23;
// No dataset has this many tokens. Counts stay far from overflow, and are exact as doubles.
constexpr int64_t kMaxFirings = int64_t{1} << 53;

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

double SpacingOf(int dropped_bits) { return dropped_bits == 0 ? 0 : std::ldexp(1, dropped_bits - kFractionBits); }

bool IsStronger(const LatentExample& a, const LatentExample& b) {
  if (a.activation != b.activation) return a.activation > b.activation;
  if (a.sequence != b.sequence) return a.sequence < b.sequence;
  return a.position < b.position;
}

// Returns -1 if there is none.
int DroppedBitsOf(double spacing) {
  for (int dropped = 0; dropped <= kFractionBits; ++dropped) {
    if (SpacingOf(dropped) == spacing) return dropped;
  }
  return -1;
}

absl::Status CheckValues(const LatentLimits& limits, const LatentFindings& findings, const std::string& field) {
  if (findings.values.size() != findings.counts.size()) {
    return InvalidField(field + ".counts", absl::StrCat("has ", findings.counts.size(), " entries for ",
                                                        findings.values.size(), " values"));
  }
  if (static_cast<int64_t>(findings.values.size()) > limits.max_values) {
    return InvalidField(field + ".values", absl::StrCat(findings.values.size(), " are more than ", limits.max_values));
  }
  const int dropped = DroppedBitsOf(findings.spacing);
  if (dropped < 0) {
    return InvalidField(field + ".value_spacing",
                        absl::StrCat(findings.spacing, " is not a spacing that the server uses"));
  }
  int64_t firings = 0;
  for (size_t i = 0; i < findings.values.size(); ++i) {
    const float value = findings.values[i];
    const bool ascends = i == 0 || value > findings.values[i - 1];
    // A subnormal value's bucket may begin at 0.
    if (!(value > 0 || (dropped > 0 && value == 0)) || !ascends || BitsOf(value) % (uint32_t{1} << dropped) != 0) {
      return InvalidField(absl::StrCat(field, ".values[", i, "]"),
                          absl::StrCat(value, " is not above 0, does not ascend, or does not fit value_spacing"));
    }
    if (findings.counts[i] <= 0 || findings.counts[i] > kMaxFirings - firings) {
      return InvalidField(absl::StrCat(field, ".counts[", i, "]"), absl::StrCat(findings.counts[i], " is not a count"));
    }
    firings += findings.counts[i];
  }
  if (firings != findings.firings) {
    return InvalidField(field + ".firings", absl::StrCat(findings.firings, " is not the sum of `counts`, ", firings));
  }
  return absl::OkStatus();
}

absl::Status CheckExamples(const LatentLimits& limits, const LatentFindings& findings, const std::string& field) {
  const auto wanted = static_cast<size_t>(std::min(limits.top, findings.firings));
  if (findings.examples.size() != wanted) {
    return InvalidField(field + ".examples",
                        absl::StrCat("has ", findings.examples.size(), ", but must have ", wanted));
  }
  for (size_t i = 0; i < wanted; ++i) {
    const LatentExample& one = findings.examples[i];
    const std::string name = absl::StrCat(field, ".examples[", i, "]");
    const auto tokens = static_cast<int64_t>(one.token_ids.size());
    const int64_t place = int64_t{one.position} - one.first_position;
    if (tokens > limits.context || one.activations.size() != one.token_ids.size() || one.first_position < 0 ||
        place < 0 || place >= tokens) {
      return InvalidField(name, absl::StrCat("its context of ", tokens, " tokens must have at most ", limits.context,
                                             ", include its position, and have a value for each token"));
    }
    if (!(one.activation > 0) || one.activations[static_cast<size_t>(place)] != one.activation) {
      return InvalidField(name + ".activation", "is not above 0, or not the value at its position");
    }
    if (i > 0 && !IsStronger(findings.examples[i - 1], one)) {
      return InvalidField(name, "is not weaker than the one before it");
    }
  }
  return absl::OkStatus();
}

}  // namespace

float LatentFindings::Quantile(double share) const {
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(firings)));
  int64_t seen = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    seen += counts[i];
    if (seen >= rank) return values[i];
  }
  return values.back();
}

absl::StatusOr<LatentRecord> LatentRecord::Restore(const LatentLimits& limits, LatentFindings findings,
                                                   const std::string& field) {
  RETURN_IF_ERROR(CheckValues(limits, findings, field));
  RETURN_IF_ERROR(CheckExamples(limits, findings, field));
  LatentRecord record(limits);
  record.firings_ = findings.firings;
  record.dropped_bits_ = DroppedBitsOf(findings.spacing);
  for (size_t i = 0; i < findings.values.size(); ++i) {
    record.counts_[BitsOf(findings.values[i]) >> record.dropped_bits_] = findings.counts[i];
  }
  record.examples_ = std::move(findings.examples);
  std::make_heap(record.examples_.begin(), record.examples_.end(), IsStronger);
  return record;
}

void LatentRecord::Add(int64_t sequence, absl::Span<const uint32_t> ids, absl::Span<const float> values) {
  for (size_t t = 0; t < values.size(); ++t) {
    const float value = values[t];
    if (!(value > 0)) continue;
    ++firings_;
    Count(value);
    if (static_cast<int64_t>(examples_.size()) == limits_.top && value < examples_.front().activation) continue;
    AddExample(sequence, static_cast<int64_t>(t), ids, values);
  }
}

// Joined buckets hold the counts that half the precision would have given from the start, so the final precision
// depends on the values alone.
void LatentRecord::Count(float value) {
  ++counts_[BitsOf(value) >> dropped_bits_];
  while (static_cast<int64_t>(counts_.size()) > limits_.max_values) {
    std::unordered_map<uint32_t, int64_t> joined;
    for (const auto& [bits, count] : counts_) joined[bits >> 1] += count;
    counts_ = std::move(joined);
    ++dropped_bits_;
  }
}

void LatentRecord::AddExample(int64_t sequence, int64_t position, absl::Span<const uint32_t> ids,
                              absl::Span<const float> values) {
  const auto length = static_cast<int64_t>(ids.size());
  const int64_t tokens = std::min(limits_.context, length);
  const int64_t first = std::clamp<int64_t>(position - tokens / 2, 0, length - tokens);
  LatentExample made;
  made.activation = values[static_cast<size_t>(position)];
  made.sequence = sequence;
  made.position = static_cast<int32_t>(position);
  made.first_position = static_cast<int32_t>(first);
  if (static_cast<int64_t>(examples_.size()) == limits_.top) {
    if (!IsStronger(made, examples_.front())) return;
    std::pop_heap(examples_.begin(), examples_.end(), IsStronger);
    examples_.pop_back();
  }
  const auto context_ids = ids.subspan(static_cast<size_t>(first), static_cast<size_t>(tokens));
  const auto context_values = values.subspan(static_cast<size_t>(first), static_cast<size_t>(tokens));
  made.token_ids.assign(context_ids.begin(), context_ids.end());
  made.activations.assign(context_values.begin(), context_values.end());
  examples_.push_back(std::move(made));
  std::push_heap(examples_.begin(), examples_.end(), IsStronger);
}

LatentFindings LatentRecord::findings() const {
  LatentFindings found;
  found.firings = firings_;
  found.spacing = SpacingOf(dropped_bits_);
  found.examples = examples_;
  std::sort(found.examples.begin(), found.examples.end(), IsStronger);
  std::vector<uint32_t> buckets;
  for (const auto& [bits, count] : counts_) buckets.push_back(bits);
  std::sort(buckets.begin(), buckets.end());  // positive numbers ascend as their bits do
  for (uint32_t bits : buckets) {
    found.values.push_back(FloatFromBits(bits << dropped_bits_));
    found.counts.push_back(counts_.at(bits));
  }
  return found;
}

}  // namespace hookline
