#include "server/model/hook_points.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Longer than any name, with room for lists. Bounds the work that one pattern can ask for.
constexpr size_t kMaxPatternBytes = 1024;
// Every wildcard is matched against every name, so a request of thousands of them would be slow to answer; a model has
// about twenty kinds of hook points, and one wildcard covers a kind.
constexpr int kMaxWildcards = 256;
// Of what a client sent, as much as helps to recognise it in an error message.
constexpr size_t kMaxQuotedBytes = 120;
constexpr int kNearestNames = 3;

std::string Quoted(absl::string_view text) {
  const bool cut = text.size() > kMaxQuotedBytes;
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(text.substr(0, kMaxQuotedBytes)), cut ? "..." : "", "'");
}

bool IsWildcard(absl::string_view pattern) { return pattern.find_first_of("*{}") != absl::string_view::npos; }

// A pattern taken apart: texts to match one after the other, each with its alternatives. Alternatives may hold `*`.
using Wildcard = std::vector<std::vector<std::string>>;

// The error is a sentence about the pattern.
absl::StatusOr<Wildcard> ParseWildcard(absl::string_view pattern) {
  Wildcard parts;
  while (!pattern.empty()) {
    size_t brace = pattern.find_first_of("{}");
    if (brace == absl::string_view::npos) {
      parts.push_back({std::string(pattern)});
      break;
    }
    if (pattern[brace] == '}') return absl::InvalidArgumentError("'}' without '{' before it");
    if (brace > 0) parts.push_back({std::string(pattern.substr(0, brace))});
    pattern.remove_prefix(brace + 1);
    size_t end = pattern.find_first_of("{}");
    if (end == absl::string_view::npos) return absl::InvalidArgumentError("'{' without '}' after it");
    if (pattern[end] == '{') return absl::InvalidArgumentError("'{' inside '{...}'");
    std::vector<std::string> alternatives = absl::StrSplit(pattern.substr(0, end), ',');
    for (const std::string& alternative : alternatives) {
      if (alternative.empty()) return absl::InvalidArgumentError("an empty entry in '{...}'");
    }
    parts.push_back(std::move(alternatives));
    pattern.remove_prefix(end + 1);
  }
  return parts;
}

// Whether position p of the text can be reached, for p = 0 ... size of the text.
using Reached = std::vector<bool>;

// The positions reached from `from` by matching `text` (literal but for `*`).
Reached Match(absl::string_view text, absl::string_view name, Reached from) {
  for (char c : text) {
    if (c == '*') {
      for (size_t p = 1; p < from.size(); ++p) from[p] = from[p] || from[p - 1];
    } else {
      for (size_t p = from.size() - 1; p > 0; --p) from[p] = from[p - 1] && name[p - 1] == c;
      from[0] = false;
    }
  }
  return from;
}

bool Matches(const Wildcard& wildcard, absl::string_view name) {
  Reached reached(name.size() + 1, false);
  reached[0] = true;
  for (const std::vector<std::string>& alternatives : wildcard) {
    Reached next(name.size() + 1, false);
    for (const std::string& alternative : alternatives) {
      Reached one = Match(alternative, name, reached);
      for (size_t p = 0; p < next.size(); ++p) next[p] = next[p] || one[p];
    }
    reached = std::move(next);
    if (std::find(reached.begin(), reached.end(), true) == reached.end()) return false;
  }
  return reached.back();
}

// Levenshtein distance.
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

  std::vector<ResolvedHookPoint> resolved;
  std::vector<int> place(points_.size(), -1);            // in `resolved`
  std::vector<int> named_by(points_.size(), -1);         // the entry that names it without a wildcard
  absl::flat_hash_map<absl::string_view, size_t> given;  // entries so far
  int wildcards = 0;
  // Adds a hook point where it is not there yet.
  auto add = [&](int index, absl::string_view name) {
    if (place[index] >= 0) return;
    place[index] = static_cast<int>(resolved.size());
    resolved.push_back({index, std::string(name)});
  };

  for (size_t i = 0; i < patterns.size(); ++i) {
    const std::string& pattern = patterns[i];
    if (pattern.empty()) return InvalidField(FieldName(i), "empty; a name or a wildcard is needed");
    if (pattern.size() > kMaxPatternBytes) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " has ", pattern.size(),
                                                     " bytes; names and wildcards have at most ", kMaxPatternBytes));
    }
    auto [first, is_new] = given.emplace(pattern, i);
    if (!is_new) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " is given twice, first as ",
                                                     FieldName(first->second), "; name each hook point once"));
    }

    if (!IsWildcard(pattern)) {
      int index = Find(pattern);
      if (auto refused = refused_.find(pattern); index < 0 && refused != refused_.end()) {
        return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " ", refused->second));
      }
      if (index < 0) {
        return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " is no hook point of this model; nearest: ",
                                                       absl::StrJoin(Nearest(pattern, kNearestNames), ", ")));
      }
      if (named_by[index] >= 0) {
        return InvalidField(FieldName(i),
                            absl::StrCat(Quoted(pattern), " is given twice: ", FieldName(named_by[index]), ", ",
                                         Quoted(patterns[named_by[index]]), ", names the same hook point"));
      }
      named_by[index] = static_cast<int>(i);
      add(index, pattern);
      resolved[place[index]].name = pattern;
      continue;
    }

    if (++wildcards > kMaxWildcards) {
      return InvalidField(
          FieldName(i), absl::StrCat("more than ", kMaxWildcards, " wildcards; use wider ones or write the names out"));
    }
    absl::StatusOr<Wildcard> wildcard = ParseWildcard(pattern);
    if (!wildcard.ok()) {
      return InvalidField(FieldName(i), absl::StrCat(Quoted(pattern), " is malformed: ", wildcard.status().message(),
                                                     "; '*' stands for any text, '{2,5}' for any of a list"));
    }
    bool matched = false;
    for (int index = 0; index < size(); ++index) {
      if (!Matches(*wildcard, points_[index].name)) continue;
      matched = true;
      add(index, points_[index].name);
    }
    if (!matched) {
      return InvalidField(
          FieldName(i), absl::StrCat(Quoted(pattern), " matches none of this model's ", size(),
                                     " hook points; nearest: ", absl::StrJoin(Nearest(pattern, kNearestNames), ", ")));
    }
  }
  if (resolved.size() > static_cast<size_t>(max_hook_points)) {
    return InvalidField("hook_points", absl::StrCat(resolved.size(), " hook points after expansion; at most ",
                                                    max_hook_points, " are accepted"));
  }
  return resolved;
}

std::vector<std::string> HookPoints::Nearest(absl::string_view name, int count) const {
  name = name.substr(0, kMaxPatternBytes);
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
