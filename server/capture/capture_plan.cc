#include "server/capture/capture_plan.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/capture/message_size.h"

namespace hookline {
namespace {

constexpr int64_t kDefaultMessageBytes = int64_t{1} << 20;
constexpr int64_t kMinMessageBytes = int64_t{16} << 10;
constexpr int64_t kMaxMessageBytes = int64_t{16} << 20;
// Longer lists are not a choice of special tokens any more, and each id is looked up for each token.
constexpr size_t kMaxExcludedIds = 1024;
constexpr size_t kMaxFeedNameBytes = 128;

absl::Status ResolveHookPoints(const CaptureRequest& request, const EngineOptions& options, CapturePlan* plan) {
  const HookPoints& points = plan->model->hook_points();
  ASSIGN_OR_RETURN(std::vector<ResolvedHookPoint> resolved,
                   points.Resolve(request.hook_points, options.max_hook_points));
  if (request.max_activations.has_value() && *request.max_activations <= 0) {
    return InvalidField("max_activations", absl::StrCat(*request.max_activations,
                                                        " is not a budget; ask for at least 1 row, or leave it out for "
                                                        "the server's cap of ",
                                                        options.max_rows));
  }
  std::set<std::string> names;
  for (const ResolvedHookPoint& point : resolved) names.insert(point.name);
  for (const auto& [name, budget] : request.max_activations_by_hook_point) {
    const std::string field = absl::StrCat("max_activations_by_hook_point[\"", name, "\"]");
    if (names.count(name) == 0) {
      return InvalidField(
          field,
          absl::StrCat("is not among the hook points asked for, which are ",
                       absl::StrJoin(names.begin(), std::next(names.begin(), std::min<size_t>(5, names.size())), ", "),
                       names.size() > 5 ? ", ..." : ""));
    }
    if (budget <= 0) return InvalidField(field, absl::StrCat(budget, " is not a budget; ask for at least 1 row"));
  }
  for (ResolvedHookPoint& point : resolved) {
    CapturePlan::HookPoint hook_point;
    hook_point.index = point.index;
    hook_point.width = points[point.index].width;
    hook_point.row_bytes = hook_point.width * DtypeBytes(request.dtype);
    hook_point.budget = request.max_activations.value_or(options.max_rows);
    auto own = request.max_activations_by_hook_point.find(point.name);
    if (own != request.max_activations_by_hook_point.end()) hook_point.budget = own->second;
    hook_point.clipped = hook_point.budget > options.max_rows;
    hook_point.budget = std::min(hook_point.budget, options.max_rows);
    hook_point.name = std::move(point.name);
    plan->max_budget = std::max(plan->max_budget, hook_point.budget);
    plan->hook_points.push_back(std::move(hook_point));
  }
  return absl::OkStatus();
}

absl::Status CheckSelection(const CaptureRequest& request, const EngineOptions& options, CapturePlan* plan) {
  Selection selection = request.selection;
  if (selection.skip_first < 0) {
    return InvalidField("selection.skip_first", absl::StrCat(selection.skip_first, " is negative"));
  }
  if (selection.position_end < 0) {
    return InvalidField("selection.position_end", absl::StrCat(selection.position_end, " is negative; 0 means no end"));
  }
  if (selection.position_end != 0 && selection.position_end <= selection.skip_first) {
    return InvalidField("selection.position_end",
                        absl::StrCat(selection.position_end, " leaves no position after skip_first ",
                                     selection.skip_first, "; ask for more, or 0 for no end"));
  }
  if (selection.skip_first >= options.max_sequence_length) {
    return InvalidField("selection.skip_first",
                        absl::StrCat(selection.skip_first, " skips every sequence, which has at most ",
                                     options.max_sequence_length, " tokens"));
  }
  if (selection.position_stride < 0) {
    return InvalidField("selection.position_stride",
                        absl::StrCat(selection.position_stride, " is negative; 1 keeps each position"));
  }
  selection.position_stride = std::max<int64_t>(1, selection.position_stride);
  if (selection.sample_rows < 0) {
    return InvalidField("selection.sample_rows", absl::StrCat(selection.sample_rows, " is negative; 0 keeps all"));
  }
  if (selection.exclude_token_ids.size() > kMaxExcludedIds) {
    return InvalidField(
        "selection.exclude_token_ids",
        absl::StrCat(selection.exclude_token_ids.size(), " ids; at most ", kMaxExcludedIds, " can be left out"));
  }
  for (size_t i = 0; i < selection.exclude_token_ids.size(); ++i) {
    if (selection.exclude_token_ids[i] >= plan->model->info().vocabulary_size) {
      return InvalidField(absl::StrCat("selection.exclude_token_ids[", i, "]"),
                          absl::StrCat("token id ", selection.exclude_token_ids[i],
                                       " is not below the vocabulary's size ", plan->model->info().vocabulary_size));
    }
  }
  std::vector<uint32_t>& ids = selection.exclude_token_ids;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  plan->selection = std::move(selection);
  return absl::OkStatus();
}

absl::Status CheckDataset(const DatasetSource& source, const std::string& field, const EngineOptions& options,
                          const std::vector<const Dataset*>& datasets, CapturePlan* plan) {
  if (source.name.empty()) return InvalidField(absl::StrCat(field, ".name"), "is empty; name a dataset");
  for (const Dataset* dataset : datasets) {
    if (dataset->name() == source.name) plan->dataset = dataset;
  }
  if (plan->dataset == nullptr) {
    std::vector<std::string> names;
    for (const Dataset* dataset : datasets) names.push_back(dataset->name());
    return absl::NotFoundError(absl::StrCat(field, ".name: no dataset \"", source.name, "\"; this server has ",
                                            names.empty() ? "none" : absl::StrJoin(names, ", ")));
  }
  const ModelInfo& info = plan->model->info();
  if (plan->dataset->largest_token_id() >= info.vocabulary_size) {
    return InvalidField(absl::StrCat(field, ".name"),
                        absl::StrCat("dataset \"", source.name, "\" holds token id ", plan->dataset->largest_token_id(),
                                     ", but ids of model \"", info.name, "\" are below ", info.vocabulary_size));
  }
  auto cut = plan->dataset->CutInto(source.sequence_length);
  if (!cut.ok()) {
    return FieldOf(cut.status()).empty()
               ? cut.status()
               : InvalidField(absl::StrCat(field, ".", FieldOf(cut.status())),
                              absl::StripPrefix(cut.status().message(), absl::StrCat(FieldOf(cut.status()), ": ")));
  }
  if (source.prepend_token_id.has_value() && *source.prepend_token_id >= info.vocabulary_size) {
    return InvalidField(absl::StrCat(field, ".prepend_token_id"),
                        absl::StrCat("token id ", *source.prepend_token_id, " is not below the vocabulary's size ",
                                     info.vocabulary_size));
  }
  const int64_t length = cut->sequence_length + (source.prepend_token_id.has_value() ? 1 : 0);
  if (length > options.max_sequence_length) {
    return InvalidField(absl::StrCat(field, ".sequence_length"),
                        absl::StrCat("sequences of ", length, " tokens (a prepended one included) are longer than the ",
                                     options.max_sequence_length, " that are allowed"));
  }
  if (source.first_sequence < 0 || source.first_sequence >= cut->sequence_count) {
    return InvalidField(absl::StrCat(field, ".first_sequence"),
                        absl::StrCat(source.first_sequence, " is not among the dataset's ", cut->sequence_count,
                                     " sequences of ", cut->sequence_length, " tokens"));
  }
  if (source.sequence_count < 0) {
    return InvalidField(absl::StrCat(field, ".sequence_count"), absl::StrCat(source.sequence_count, " is negative"));
  }
  plan->dataset_source = source;
  plan->dataset_source.sequence_length = cut->sequence_length;
  const int64_t rest = cut->sequence_count - source.first_sequence;
  plan->dataset_source.sequence_count = source.sequence_count == 0 ? rest : std::min(rest, source.sequence_count);
  plan->dataset_sequence_length = cut->sequence_length;
  return absl::OkStatus();
}

absl::Status CheckFeed(const FeedSource& feed, const EngineOptions& options) {
  if (feed.name.empty() || feed.name.size() > kMaxFeedNameBytes ||
      feed.name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") !=
          std::string::npos) {
    return InvalidField("feed.name",
                        absl::StrCat("\"", feed.name.substr(0, kMaxFeedNameBytes), "\" is not a name: 1 to ",
                                     kMaxFeedNameBytes, " of the characters A-Z a-z 0-9 . _ -"));
  }
  if (feed.start_when_subscribers < 0) {
    return InvalidField("feed.start_when_subscribers", absl::StrCat(feed.start_when_subscribers, " is negative"));
  }
  if (feed.start_when_subscribers > options.max_captures) {
    return InvalidField("feed.start_when_subscribers",
                        absl::StrCat(feed.start_when_subscribers, " is more than the ", options.max_captures,
                                     " captures that this server runs at once"));
  }
  return absl::OkStatus();
}

absl::Status SizeWindow(const CaptureRequest& request, const EngineOptions& options, CapturePlan* plan) {
  plan->max_message_bytes = request.max_message_bytes == 0 ? kDefaultMessageBytes : request.max_message_bytes;
  if (plan->max_message_bytes < kMinMessageBytes || plan->max_message_bytes > kMaxMessageBytes) {
    return InvalidField("max_message_bytes",
                        absl::StrCat(request.max_message_bytes, " is not between ", kMinMessageBytes, " and ",
                                     kMaxMessageBytes, "; 0 means ", kDefaultMessageBytes));
  }
  plan->group_rows = std::numeric_limits<int64_t>::max();
  for (const CapturePlan::HookPoint& hook_point : plan->hook_points) {
    const MessageShape shape{static_cast<int64_t>(hook_point.name.size()), hook_point.width, request.dtype,
                             request.encoding, request.provenance};
    const int64_t rows = MaxMessageRows(shape, plan->max_message_bytes);
    if (rows == 0) {
      return InvalidField(
          "max_message_bytes",
          absl::StrCat("a row of ", hook_point.name, " takes ", MessageHeaderBytes(shape) + MessageRowBytes(shape),
                       " bytes as a message, more than ", plan->max_message_bytes));
    }
    plan->group_rows = std::min(plan->group_rows, rows);
  }
  // Two groups, so that one can be filled while the other is read; but no capture may take more than a quarter of all.
  const int64_t most = std::max<int64_t>(1, options.slab_count / 4);
  const auto window_for = [&](int64_t rows) { return 2 * GroupSlabs(plan->hook_points, rows, options.slab_bytes); };
  if (window_for(1) > most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("hook_points: two rows of these ", plan->hook_points.size(), " hook points take ", window_for(1),
                     " slabs of ", options.slab_bytes, " bytes, but a capture may have ", most, " of the server's ",
                     options.slab_count, " (--slab-count); ask for fewer hook points"));
  }
  if (window_for(plan->group_rows) > most) {
    int64_t fits = 1;
    for (int64_t too_many = plan->group_rows; too_many - fits > 1;) {
      const int64_t middle = fits + (too_many - fits) / 2;
      (window_for(middle) <= most ? fits : too_many) = middle;
    }
    plan->group_rows = fits;
  }
  plan->window_slabs = std::max(std::min(options.window_slabs, most), window_for(plan->group_rows));
  return absl::OkStatus();
}

uint64_t Hash(absl::string_view text) { return XXH3_64bits(text.data(), text.size()); }

std::string SourceText(const CapturePlan& plan) {
  if (plan.dataset == nullptr) return "client";
  const DatasetSource& source = plan.dataset_source;
  return absl::StrCat("dataset ", source.name, " ", plan.dataset->fingerprint(), " ", source.sequence_length, " ",
                      source.first_sequence, " ", source.sequence_count, " ",
                      source.prepend_token_id.has_value() ? absl::StrCat(*source.prepend_token_id) : "none");
}

// What decides which rows there are, but for the model and the source.
std::string RowsText(const CapturePlan& plan) {
  std::string text;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    absl::StrAppend(&text, hook_point.name, " ", hook_point.budget, "\n");
  }
  const Selection& selection = plan.selection;
  absl::StrAppend(&text, DtypeName(plan.dtype), " ", plan.provenance, " ", plan.deterministic, " ",
                  selection.skip_first, " ", selection.position_end, " ", selection.position_stride, " ",
                  selection.sample_rows, " ", selection.seed, " ", absl::StrJoin(selection.exclude_token_ids, ","));
  return text;
}

}  // namespace

int64_t GroupSlabs(const std::vector<CapturePlan::HookPoint>& hook_points, int64_t rows, int64_t slab_bytes) {
  int64_t slabs = 0;
  int64_t room = 0;
  for (const CapturePlan::HookPoint& hook_point : hook_points) {
    int64_t left = rows - std::min(rows, room / hook_point.row_bytes);
    room -= (rows - left) * hook_point.row_bytes;
    if (left == 0) continue;
    const int64_t per_slab = slab_bytes / hook_point.row_bytes;
    if (per_slab == 0) return std::numeric_limits<int64_t>::max() / 2;
    const int64_t more = (left + per_slab - 1) / per_slab;
    slabs += more;
    room = slab_bytes - (left - (more - 1) * per_slab) * hook_point.row_bytes;
  }
  return slabs;
}

absl::StatusOr<CapturePlan> MakeCapturePlan(const CaptureRequest& request, const Model& model,
                                            const EngineOptions& options, const std::vector<const Dataset*>& datasets) {
  CapturePlan plan;
  plan.model = &model;
  plan.dtype = request.dtype;
  plan.provenance = request.provenance;
  plan.deterministic = request.deterministic;
  RETURN_IF_ERROR(ResolveHookPoints(request, options, &plan));
  RETURN_IF_ERROR(CheckSelection(request, options, &plan));
  if (std::holds_alternative<std::monostate>(request.source)) {
    return InvalidField("source", "is missing; give one of tokens, dataset, feed");
  }
  if (const auto* dataset = std::get_if<DatasetSource>(&request.source)) {
    RETURN_IF_ERROR(CheckDataset(*dataset, "dataset", options, datasets, &plan));
  }
  if (const auto* feed = std::get_if<FeedSource>(&request.source)) {
    RETURN_IF_ERROR(CheckFeed(*feed, options));
    RETURN_IF_ERROR(CheckDataset(feed->dataset, "feed.dataset", options, datasets, &plan));
  }
  RETURN_IF_ERROR(SizeWindow(request, options, &plan));

  plan.digests.model = Hash(model.info().fingerprint);
  plan.digests.source = Hash(SourceText(plan));
  plan.digests.request = Hash(absl::StrCat(RowsText(plan), " ", plan.max_message_bytes));
  plan.position.sequence = plan.position.batch_sequence = plan.dataset_source.first_sequence;
  if (!request.resume_token.empty()) {
    ASSIGN_OR_RETURN(plan.position,
                     DecodeResumeToken(request.resume_token, plan.digests, static_cast<int>(plan.hook_points.size())));
    plan.resumes = true;
    if (plan.position.group_rows > plan.group_rows) {
      return absl::FailedPreconditionError(
          absl::StrCat("resume_token: stands inside a row group of ", plan.position.group_rows,
                       " rows, but this server's slabs (--slab-bytes, --slab-count) allow ", plan.group_rows));
    }
    for (size_t i = 0; i < plan.hook_points.size(); ++i) {
      const bool has_group = static_cast<int64_t>(i) < plan.position.group_hook_points;
      plan.hook_points[i].start =
          std::min(plan.hook_points[i].budget, plan.position.rows + (has_group ? plan.position.group_rows : 0));
    }
  }
  return plan;
}

absl::Status CheckTokens(const TokenBatch& tokens, absl::string_view field, int64_t first_sequence, const Model& model,
                         const EngineOptions& options) {
  if (tokens.sequences.empty()) {
    return InvalidField(absl::StrCat(field, ".sequences"), "is empty; send at least one sequence");
  }
  int64_t total = 0;
  for (size_t i = 0; i < tokens.sequences.size(); ++i) {
    const std::vector<uint32_t>& ids = tokens.sequences[i];
    const int64_t index = first_sequence + static_cast<int64_t>(i);
    const auto name = [&] { return absl::StrCat(field, ".sequences[", index, "].ids"); };
    if (ids.empty()) return InvalidField(name(), "is empty; a sequence has at least one token");
    if (static_cast<int64_t>(ids.size()) > options.max_sequence_length) {
      return InvalidField(
          name(), absl::StrCat(ids.size(), " tokens are more than the ", options.max_sequence_length,
                               " that a sequence may have (the model's context is ", model.info().context_length, ")"));
    }
    const uint32_t vocabulary = static_cast<uint32_t>(model.info().vocabulary_size);
    for (size_t t = 0; t < ids.size(); ++t) {
      if (ids[t] >= vocabulary) {
        return InvalidField(absl::StrCat(name(), "[", t, "]"),
                            absl::StrCat("token id ", ids[t], " in sequence ", index, " at position ", t,
                                         " is not below the vocabulary's size ", vocabulary));
      }
    }
    total += static_cast<int64_t>(ids.size());
  }
  if (total > options.max_request_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(field, ": ", total, " tokens in one message are more than the ",
                                                     options.max_request_tokens,
                                                     " that the server takes (--max-request-tokens); send them in "
                                                     "several, by CaptureStream"));
  }
  return absl::OkStatus();
}

std::string RequestDigestOf(const CaptureRequest& request, const CapturePlan& plan) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  const auto add = [state](absl::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(state, &size, sizeof(size));
    XXH3_128bits_update(state, text.data(), text.size());
  };
  add(plan.model->info().fingerprint);
  add(SourceText(plan));
  add(RowsText(plan));
  if (const auto* tokens = std::get_if<TokenBatch>(&request.source)) {
    for (const std::vector<uint32_t>& ids : tokens->sequences) {
      add(absl::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t)));
    }
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16), absl::Hex(hash.low64, absl::kZeroPad16));
}

}  // namespace hookline
