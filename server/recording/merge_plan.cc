#include "server/recording/merge_plan.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/hash.h"
#include "server/base/json.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// No dataset has this many sequences.
constexpr int64_t kMaxSequences = int64_t{1} << 40;

// A part with its place in the dataset.
struct Placed {
  size_t index = 0;  // among the parts as they were given
  const std::string* label = nullptr;
  const Manifest* manifest = nullptr;
  const nlohmann::json* dataset = nullptr;
  int64_t begin = 0;  // its first sequence
  int64_t end = 0;
  int64_t length = 0;  // tokens of each sequence
  std::optional<RecordingPart> part;

  std::string Name() const { return absl::StrCat("recording ", *label); }
};

absl::Status Refusal(absl::string_view text) { return absl::FailedPreconditionError(text); }

std::string Shown(const nlohmann::json& value) {
  return Escaped(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

absl::StatusOr<int64_t> Number(const Placed& part, const nlohmann::json& object, const char* key, int64_t absent) {
  const auto found = object.find(key);
  if (found == object.end()) return absent;
  const std::optional<int64_t> number = JsonInteger(*found, 0, kMaxSequences);
  if (!number.has_value()) {
    return absl::DataLossError(absl::StrCat(part.Name(), ": ", key, " is ", Shown(*found), " in its manifest"));
  }
  return *number;
}

absl::StatusOr<std::optional<RecordingPart>> PartOf(const Placed& placed) {
  const auto found = placed.manifest->source.find("part");
  if (found == placed.manifest->source.end()) return std::nullopt;
  if (!found->is_object()) return absl::DataLossError(absl::StrCat(placed.Name(), ": source.part: not an object"));
  RecordingPart part;
  ASSIGN_OR_RETURN(part.index, Number(placed, *found, "index", 0));
  ASSIGN_OR_RETURN(part.count, Number(placed, *found, "count", 0));
  ASSIGN_OR_RETURN(part.first_sequence, Number(placed, *found, "first_sequence", 0));
  ASSIGN_OR_RETURN(part.sequence_count, Number(placed, *found, "sequence_count", 0));
  return part;
}

absl::StatusOr<Placed> Place(const std::vector<MergePart>& parts, size_t index) {
  Placed placed;
  placed.index = index;
  placed.label = &parts[index].label;
  placed.manifest = &parts[index].manifest;
  const Manifest& manifest = *placed.manifest;
  if (manifest.state != RecordingState::kComplete) {
    return Refusal(absl::StrCat(placed.Name(), " is ", RecordingStateName(manifest.state),
                                "; only COMPLETE recordings can be merged, and the same Persist call completes it"));
  }
  const auto dataset = manifest.source.find("dataset");
  if (dataset == manifest.source.end() || !dataset->is_object()) {
    return Refusal(
        absl::StrCat(placed.Name(), " has its sequences from a request; only parts of a dataset can be merged"));
  }
  placed.dataset = &*dataset;
  ASSIGN_OR_RETURN(const int64_t epochs, Number(placed, *dataset, "epochs", 1));
  if (epochs != 1 || dataset->contains("shuffle_seed")) {
    return Refusal(absl::StrCat(placed.Name(), " takes its dataset ", epochs, " times, ",
                                dataset->contains("shuffle_seed") ? "shuffled" : "in order",
                                "; only parts of one pass in order can be merged"));
  }
  if (!dataset->contains("fingerprint")) {
    return Refusal(absl::StrCat(placed.Name(),
                                " does not have its dataset's fingerprint, because an older version began it; "
                                "record it again"));
  }
  ASSIGN_OR_RETURN(const int64_t first, Number(placed, *dataset, "first_sequence", 0));
  ASSIGN_OR_RETURN(const int64_t count, Number(placed, *dataset, "sequence_count", 0));
  ASSIGN_OR_RETURN(const int64_t skipped, Number(placed, *dataset, "skip_sequences", 0));
  ASSIGN_OR_RETURN(placed.length, Number(placed, *dataset, "sequence_length", 0));
  if (dataset->contains("prepend_token_id")) ++placed.length;
  placed.begin = first + skipped;
  placed.end = first + count;
  ASSIGN_OR_RETURN(placed.part, PartOf(placed));
  return placed;
}

absl::Status CheckAlike(const Placed& a, const Placed& b) {
  const auto differs = [&](absl::string_view what, const auto& mine, const auto& theirs) {
    return Refusal(absl::StrCat(what, ": ", a.Name(), " has ", mine, " and ", b.Name(), " has ", theirs));
  };
  const Manifest& mine = *a.manifest;
  const Manifest& theirs = *b.manifest;
  if (mine.fingerprint != theirs.fingerprint) {
    return differs("the model's fingerprint", Escaped(mine.fingerprint), Escaped(theirs.fingerprint));
  }
  if (mine.dtype != theirs.dtype) return differs("dtype", DtypeName(mine.dtype), DtypeName(theirs.dtype));
  if (mine.top_k != theirs.top_k) return differs("top_k", mine.top_k, theirs.top_k);
  if (mine.deterministic != theirs.deterministic) {
    return differs("deterministic", mine.deterministic ? "true" : "false", theirs.deterministic ? "true" : "false");
  }
  if (mine.selection != theirs.selection) return differs("selection", Shown(mine.selection), Shown(theirs.selection));
  if (mine.hook_points.size() != theirs.hook_points.size()) {
    return differs("hook points", mine.hook_points.size(), theirs.hook_points.size());
  }
  for (size_t i = 0; i < mine.hook_points.size(); ++i) {
    const RecordedHookPoint& point = mine.hook_points[i];
    const RecordedHookPoint& other = theirs.hook_points[i];
    if (point.name != other.name) {
      return differs(absl::StrCat("hook point ", i), Escaped(point.name), Escaped(other.name));
    }
    if (point.width != other.width) return differs(absl::StrCat("width of ", point.name), point.width, other.width);
  }
  for (const char* key : {"name", "fingerprint", "sequence_length", "prepend_token_id"}) {
    const nlohmann::json one = a.dataset->value(key, nlohmann::json());
    const nlohmann::json other = b.dataset->value(key, nlohmann::json());
    if (one != other) return differs(absl::StrCat("the dataset's ", key), Shown(one), Shown(other));
  }
  return absl::OkStatus();
}

// Returns FAILED_PRECONDITION unless `b` begins where `a` ends.
absl::Status CheckFollows(const Placed& a, const Placed& b) {
  if (b.begin == a.end) return absl::OkStatus();
  return Refusal(absl::StrCat(b.Name(), " begins with sequence ", b.begin, ", and ", a.Name(), " ends with sequence ",
                              a.end - 1, ": sequences ", std::min(a.end, b.begin), " to ", std::max(a.end, b.begin) - 1,
                              b.begin < a.end ? " are in both" : " are in no part"));
}

// Returns whether a hook point of the part has all rows of the part's sequences. Where the budget is used up, this is
// known only for a selection that keeps every row.
bool IsWhole(const Placed& part, int hook_point) {
  const Manifest& manifest = *part.manifest;
  const int64_t rows = manifest.RowsOf(hook_point);
  if (rows < manifest.hook_points[hook_point].max_activations) return rows == manifest.rows();
  return manifest.selection.empty() && rows == (part.end - part.begin) * part.length;
}

absl::Status CheckBudgets(const std::vector<Placed>& parts) {
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    const Manifest& manifest = *parts[i].manifest;
    for (int point = 0; point < static_cast<int>(manifest.hook_points.size()); ++point) {
      if (IsWhole(parts[i], point)) continue;
      return Refusal(absl::StrCat(parts[i].Name(), ": ", manifest.hook_points[point].name, " ends with its budget of ",
                                  manifest.hook_points[point].max_activations, " rows, so that rows before those of ",
                                  parts[i + 1].Name(), " may be missing; only the last part may end with its budget"));
    }
  }
  return absl::OkStatus();
}

// Returns FAILED_PRECONDITION unless the parts are all those into which Persist cut one range, or no part belongs to
// such a range. Parts after the end of a budget have no rows and are not recorded.
absl::Status CheckAllParts(const std::vector<Placed>& parts) {
  const Placed& first = parts.front();
  for (const Placed& part : parts) {
    if (part.part.has_value() != first.part.has_value() ||
        (part.part.has_value() &&
         (part.part->count != first.part->count || part.part->first_sequence != first.part->first_sequence ||
          part.part->sequence_count != first.part->sequence_count))) {
      const auto text = [](const Placed& one) {
        return one.part.has_value() ? Shown(PartJson(*one.part)) : std::string("not a part of a range");
      };
      return Refusal(absl::StrCat(first.Name(), " is ", text(first), " and ", part.Name(), " is ", text(part)));
    }
  }
  if (!first.part.has_value()) return absl::OkStatus();
  const int64_t begin = first.part->first_sequence;
  const int64_t end = begin + first.part->sequence_count;
  if (first.begin != begin) {
    return Refusal(absl::StrCat("the parts are of sequences ", begin, " to ", end - 1, ", and the first of them, ",
                                first.Name(), ", begins with sequence ", first.begin));
  }
  const Placed& last = parts.back();
  if (last.end == end) return absl::OkStatus();
  for (int point = 0; point < static_cast<int>(last.manifest->hook_points.size()); ++point) {
    if (last.manifest->RowsOf(point) == last.manifest->hook_points[point].max_activations) continue;
    return Refusal(absl::StrCat("the parts are of sequences ", begin, " to ", end - 1, ", and the last of them, ",
                                last.Name(), ", ends with sequence ", last.end - 1));
  }
  return absl::OkStatus();
}

void AddShards(const std::vector<Placed>& parts, MergePlan& plan) {
  Manifest& merged = plan.manifest;
  int64_t row = 0;
  for (const Placed& part : parts) {
    for (const ShardInfo& shard : part.manifest->shards) {
      plan.sources.push_back({part.index, shard.file});
      ShardInfo& added = merged.shards.emplace_back(shard);
      added.first_row = row;
      added.file = ShardFileName(added.first_row, added.end_row());
      row = added.end_row();
    }
    merged.shard_rows = std::max(merged.shard_rows, part.manifest->shard_rows);
  }
}

}  // namespace

int64_t PartBegin(const RecordingPart& whole, int64_t index) {
  return whole.first_sequence + whole.sequence_count * index / whole.count;
}

nlohmann::json PartJson(const RecordingPart& part) {
  return {{"index", part.index},
          {"count", part.count},
          {"first_sequence", part.first_sequence},
          {"sequence_count", part.sequence_count}};
}

absl::StatusOr<MergePlan> PlanMerge(const std::string& name, const std::vector<MergePart>& parts) {
  std::vector<Placed> placed;
  for (size_t i = 0; i < parts.size(); ++i) {
    ASSIGN_OR_RETURN(placed.emplace_back(), Place(parts, i));
    RETURN_IF_ERROR(CheckAlike(placed.front(), placed.back()));
  }
  std::stable_sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  for (size_t i = 0; i + 1 < placed.size(); ++i) RETURN_IF_ERROR(CheckFollows(placed[i], placed[i + 1]));
  RETURN_IF_ERROR(CheckBudgets(placed));
  RETURN_IF_ERROR(CheckAllParts(placed));

  MergePlan plan;
  Manifest& merged = plan.manifest;
  merged = *placed.front().manifest;
  merged.name = name;
  merged.client.clear();
  merged.merged = true;
  merged.shards.clear();
  AddShards(placed, plan);
  Xxh3 digest;
  digest.UpdateWithLength("merged");
  int64_t before = 0;  // the rows of all parts but the last
  for (const Placed& part : placed) {
    digest.UpdateWithLength(part.manifest->request_digest);
    if (&part != &placed.back()) before += part.manifest->rows();
  }
  merged.request_digest = digest.hex();
  for (size_t i = 0; i < merged.hook_points.size(); ++i) {
    const int64_t budget = before + placed.back().manifest->hook_points[i].max_activations;
    merged.hook_points[i].max_activations = std::min(budget, kMaxRecordedRows);
  }
  merged.source.erase("part");
  nlohmann::json& dataset = merged.source["dataset"];
  dataset.erase("skip_sequences");
  dataset["first_sequence"] = placed.front().begin;
  dataset["sequence_count"] = placed.back().end - placed.front().begin;
  merged.resume_token.clear();
  merged.resume_row = merged.rows();
  merged.resume_message_bytes = 0;
  if (merged.shards.size() > kMaxMergedShards) {
    return Refusal(
        absl::StrCat("the parts have ", merged.shards.size(), " shards; a recording has at most ", kMaxMergedShards));
  }
  // Parts within the limits can exceed the limits of one recording together.
  if (const auto parsed = ParseManifest(FormatManifest(merged)); !parsed.ok()) {
    return Refusal(absl::StrCat("the parts are too large for one recording: ", parsed.status().message()));
  }
  return plan;
}

}  // namespace hookline
