#include "server/model/hook_points.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <set>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Longer than any name, with room for lists. It bounds the work for one pattern.
constexpr size_t kMaxPatternBytes = 1024;
// Every wildcard is matched against every name, so a request with thousands of wildcards would be slow to answer. A
// model has about twenty kinds of hook points, and one wildcard covers a kind.
constexpr int kMaxWildcards = 256;
// Limits the wildcards of a request together: 64 bytes for each of the most wildcards. Matching so many against a
// thousand names takes some ten milliseconds.
constexpr size_t kMaxWildcardBytes = size_t{16} << 10;
constexpr int kNearestNames = 3;

bool IsWildcard(absl::string_view pattern) { return pattern.find_first_of("*{}") != absl::string_view::npos; }

// A parsed pattern: texts to match one after the other, each with its alternatives. Alternatives can hold `*`, but
// never two in a row, and differ from each other.
using Wildcard = std::vector<std::vector<std::string>>;

std::string OneStarForMany(absl::string_view text) {
  std::string out;
  for (char c : text) {
    if (c != '*' || out.empty() || out.back() != '*') out.push_back(c);
  }
  return out;
}

// The error is a sentence about the pattern.
absl::StatusOr<Wildcard> ParseWildcard(absl::string_view pattern) {
  Wildcard parts;
  while (!pattern.empty()) {
    size_t brace = pattern.find_first_of("{}");
    if (brace == absl::string_view::npos) {
      parts.push_back({OneStarForMany(pattern)});
      break;
    }
    if (pattern[brace] == '}') return absl::InvalidArgumentError("'}' without '{' before it");
    if (brace > 0) parts.push_back({OneStarForMany(pattern.substr(0, brace))});
    pattern.remove_prefix(brace + 1);
    size_t end = pattern.find_first_of("{}");
    if (end == absl::string_view::npos) return absl::InvalidArgumentError("'{' without '}' after it");
    if (pattern[end] == '{') return absl::InvalidArgumentError("'{' inside '{...}'");
    std::set<std::string> alternatives;
    for (absl::string_view alternative : absl::StrSplit(pattern.substr(0, end), ',')) {
      if (alternative.empty()) return absl::InvalidArgumentError("an empty entry in '{...}'");
      alternatives.insert(OneStarForMany(alternative));
    }
    parts.emplace_back(alternatives.begin(), alternatives.end());
    pattern.remove_prefix(end + 1);
  }
  return parts;
}

// A name to match wildcards with, 64 positions at a time. The time for a pattern is proportional to its length and to a
// 64th of the name's length, whatever the pattern holds.
class MatchedName {
 public:
  explicit MatchedName(absl::string_view name) : words_((name.size() + 1 + 63) / 64), after_(256 * words_) {
    for (size_t p = 0; p < name.size(); ++p) {
      const size_t at = p + 1;
      after_[static_cast<unsigned char>(name[p]) * words_ + at / 64] |= uint64_t{1} << (at % 64);
    }
    last_ = name.size();
  }

  bool Matches(const Wildcard& wildcard) const {
    Positions reached(words_, 0);
    reached[0] = 1;
    for (const std::vector<std::string>& alternatives : wildcard) {
      Positions next(words_, 0);
      for (const std::string& alternative : alternatives) {
        const Positions one = Match(alternative, reached);
        for (size_t w = 0; w < words_; ++w) next[w] |= one[w];
      }
      reached = std::move(next);
      if (!Any(reached)) return false;
    }
    return (reached[last_ / 64] >> (last_ % 64) & 1) != 0;
  }

 private:
  // A bit for each position of the name that can be reached, from 0 to the name's size.
  using Positions = absl::InlinedVector<uint64_t, 4>;

  static bool Any(const Positions& positions) {
    return std::any_of(positions.begin(), positions.end(), [](uint64_t word) { return word != 0; });
  }

  // Returns the positions reached from `from` by matching `text` (literal but for `*`).
  Positions Match(absl::string_view text, Positions from) const {
    for (char c : text) {
      uint64_t any = 0;
      if (c == '*') {
        // All positions from the first one on are reached.
        for (uint64_t& word : from) {
          const uint64_t first = word & (~word + 1);
          word = any != 0 ? ~uint64_t{0} : ~(first - 1) & (first == 0 ? 0 : ~uint64_t{0});
          any |= word;
        }
      } else {
        uint64_t carry = 0;
        const uint64_t* after = &after_[static_cast<unsigned char>(c) * words_];
        for (size_t w = 0; w < words_; ++w) {
          const uint64_t shifted = from[w] << 1 | carry;
          carry = from[w] >> 63;
          from[w] = shifted & after[w];
          any |= from[w];
        }
      }
      if (any == 0) break;
    }
    return from;
  }

  const size_t words_;
  size_t last_;
  // For each byte, the positions in the name that follow an occurrence of it.
  std::vector<uint64_t> after_;
};

// Returns the Levenshtein distance.
int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      int substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string FieldName(size_t i) { return absl::StrCat("hook_points[", i, "]"); }

// Resolves the entries of a request one by one.
class Resolver {
 public:
  // The arguments outlive the resolver.
  Resolver(const HookPoints& points, const absl::flat_hash_map<std::string, std::string>& refused,
           absl::Span<const std::string> patterns)
      : points_(points),
        refused_(refused),
        patterns_(patterns),
        place_(static_cast<size_t>(points.size()), -1),
        named_by_(static_cast<size_t>(points.size()), -1) {}

  absl::Status Add(size_t i) {
    const std::string& pattern = patterns_[i];
    if (pattern.empty()) return InvalidField(FieldName(i), "empty; a name or a wildcard is needed");
    if (pattern.size() > kMaxPatternBytes) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " has ", pattern.size(),
                                                     " bytes; names and wildcards have at most ", kMaxPatternBytes));
    }
    auto [first, is_new] = given_.emplace(pattern, i);
    if (!is_new) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " is given twice, first as ",
                                                     FieldName(first->second), "; name each hook point once"));
    }
    return IsWildcard(pattern) ? AddWildcard(i) : AddName(i);
  }

  std::vector<ResolvedHookPoint> Resolved() { return std::move(resolved_); }

 private:
  absl::Status AddName(size_t i) {
    const std::string& name = patterns_[i];
    const int index = points_.Find(name);
    if (auto refused = refused_.find(name); index < 0 && refused != refused_.end()) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(name), " ", refused->second));
    }
    if (index < 0) {
      return InvalidField(FieldName(i),
                          absl::StrCat(Quoted(name), " is not a hook point of this model; nearest: ", Nearest(name)));
    }
    if (named_by_[index] >= 0) {
      return InvalidField(FieldName(i),
                          absl::StrCat(Quoted(name), " is given twice: ", FieldName(named_by_[index]), ", ",
                                       Quoted(patterns_[named_by_[index]]), ", names the same hook point"));
    }
    named_by_[index] = static_cast<int>(i);
    Put(index);
    resolved_[place_[index]].name = name;
    return absl::OkStatus();
  }

  absl::Status AddWildcard(size_t i) {
    const std::string& pattern = patterns_[i];
    if (++wildcards_ > kMaxWildcards) {
      return InvalidField(
          FieldName(i), absl::StrCat("more than ", kMaxWildcards, " wildcards; use wider ones or write the names out"));
    }
    wildcard_bytes_ += pattern.size();
    if (wildcard_bytes_ > kMaxWildcardBytes) {
      return InvalidField(FieldName(i), absl::StrCat("with it the wildcards have more than ", kMaxWildcardBytes,
                                                     " bytes; use shorter ones or write the names out"));
    }
    absl::StatusOr<Wildcard> wildcard = ParseWildcard(pattern);
    if (!wildcard.ok()) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " is malformed: ", wildcard.status().message(),
                                                     "; '*' stands for any text, '{2,5}' for any of a list"));
    }
    if (names_.empty()) {
      names_.reserve(points_.all().size());
      for (const HookPoint& point : points_.all()) names_.emplace_back(point.name);
    }
    bool matched = false;
    for (int index = 0; index < points_.size(); ++index) {
      if (!names_[index].Matches(*wildcard)) continue;
      matched = true;
      Put(index);
    }
    if (matched) return absl::OkStatus();
    return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " matches none of this model's ", points_.size(),
                                                   " hook points; nearest: ", Nearest(pattern)));
  }

  // Adds a hook point unless it is already there.
  void Put(int index) {
    if (place_[index] >= 0) return;
    place_[index] = static_cast<int>(resolved_.size());
    resolved_.push_back({index, points_[index].name});
  }

  std::string Nearest(absl::string_view name) const {
    return absl::StrJoin(points_.Nearest(name, kNearestNames), ", ");
  }

  const HookPoints& points_;
  const absl::flat_hash_map<std::string, std::string>& refused_;
  const absl::Span<const std::string> patterns_;
  std::vector<ResolvedHookPoint> resolved_;
  std::vector<int> place_;                                // place of each hook point in `resolved_`
  std::vector<int> named_by_;                             // the entry that names each hook point without a wildcard
  absl::flat_hash_map<absl::string_view, size_t> given_;  // entries so far
  int wildcards_ = 0;
  size_t wildcard_bytes_ = 0;
  std::vector<MatchedName> names_;  // of all hook points, once there is a wildcard
};

}  // namespace

HookPoints::HookPoints(std::vector<HookPoint> points, absl::flat_hash_map<std::string, int> aliases,
                       absl::flat_hash_map<std::string, std::string> refused)
    : points_(std::move(points)), aliases_(std::move(aliases)), refused_(std::move(refused)) {
  for (int i = 0; i < size(); ++i) {
    bool unique = index_.emplace(points_[i].name, i).second;
    assert(unique);
    (void)unique;
  }
}

int HookPoints::Add(HookPoint point) {
  const int index = size();
  index_.emplace(point.name, index);
  points_.push_back(std::move(point));
  return index;
}

int HookPoints::Find(absl::string_view name) const {
  if (auto found = index_.find(name); found != index_.end()) return found->second;
  if (auto found = aliases_.find(name); found != aliases_.end()) return found->second;
  return -1;
}

absl::StatusOr<std::vector<ResolvedHookPoint>> HookPoints::Resolve(absl::Span<const std::string> patterns,
                                                                   int max_hook_points) const {
  if (patterns.empty()) {
    return InvalidField("hook_points", "none were given; name at least one, for example " +
                                           Quoted(points_.empty() ? "*" : points_.back().name));
  }
  if (patterns.size() > static_cast<size_t>(max_hook_points)) {
    return InvalidField("hook_points", absl::StrCat(patterns.size(), " entries; at most ", max_hook_points,
                                                    " hook points are accepted"));
  }

  Resolver resolver(*this, refused_, patterns);
  for (size_t i = 0; i < patterns.size(); ++i) RETURN_IF_ERROR(resolver.Add(i));
  std::vector<ResolvedHookPoint> resolved = resolver.Resolved();
  if (resolved.size() > static_cast<size_t>(max_hook_points)) {
    return InvalidField("hook_points", absl::StrCat(resolved.size(), " hook points after expansion; at most ",
                                                    max_hook_points, " are accepted"));
  }
  return resolved;
}

std::vector<std::string> HookPoints::Nearest(absl::string_view name, int count) const {
  // A text much longer than any name is equally far from all names.
  size_t longest = 0;
  for (const HookPoint& point : points_) longest = std::max(longest, point.name.size());
  name = name.substr(0, 2 * longest);
  std::vector<std::pair<int, int>> distances;  // distance, index
  distances.reserve(points_.size());
  for (int i = 0; i < size(); ++i) distances.emplace_back(EditDistance(name, points_[i].name), i);
  std::stable_sort(distances.begin(), distances.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (const auto& [distance, index] : distances) {
    if (static_cast<int>(names.size()) == count) break;
    names.push_back(points_[index].name);
  }
  return names;
}

}  // namespace hookline
