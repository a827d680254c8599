#include "server/capture/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/hash.h"
#include "server/base/name.h"
#include "server/base/status.h"
#include "server/capture/budgets.h"
#include "server/capture/message_size.h"
#include "server/capture/row_packing.h"
#include "server/capture/selection.h"
#include "server/capture/token_batch.h"

namespace hookline {
namespace {

// Every gRPC client receives messages of this size unless it is told otherwise.
constexpr int64_t kMaxStatisticsBytes = int64_t{4} << 20;

absl::Status ResolveHookPoints(const CaptureRequest& request, CapturePlan* plan) {
  const HookPoints& points = plan->model->hook_points();
  ASSIGN_OR_RETURN(const std::vector<ResolvedHookPoint> resolved,
                   points.Resolve(request.hook_points, plan->limits.max_hook_points));
  std::vector<std::string> names;
  for (const ResolvedHookPoint& point : resolved) names.push_back(point.name);
  const std::vector<int64_t> caps(names.size(), plan->limits.max_rows);
  ASSIGN_OR_RETURN(const std::vector<Budget> budgets,
                   ResolveBudgets(request.max_activations, request.max_activations_by_hook_point, names, caps));
  for (size_t i = 0; i < resolved.size(); ++i) {
    CapturePlan::HookPoint hook_point;
    hook_point.index = resolved[i].index;
    hook_point.name = names[i];
    hook_point.width = points[hook_point.index].width;
    if (plan->top_k > hook_point.width) {
      return InvalidField("top_k", absl::StrCat(plan->top_k, " is more than the ", hook_point.width,
                                                " values of a row of ", hook_point.name));
    }
    hook_point.layout = {plan->dtype, hook_point.width, plan->top_k};
    hook_point.row_bytes = hook_point.layout.bytes();
    hook_point.budget = budgets[i].rows;
    hook_point.clipped = budgets[i].clipped;
    plan->max_budget = std::max(plan->max_budget, hook_point.budget);
    plan->hook_points.push_back(std::move(hook_point));
  }
  return absl::OkStatus();
}

// The summary of statistics_only is one message, and the mean vectors are its largest part.
absl::Status CheckStatisticsFit(const CaptureRequest& request, const CapturePlan& plan) {
  if (!request.record_as.empty()) {
    return InvalidField("statistics_only", "contradicts record_as: no rows are sent that could be recorded");
  }
  // Beside the mean vector a hook point's entry has its name and numbers of 10 bytes at most; the rest of the summary
  // and the tags fit into the last term.
  constexpr int64_t kNumberBytes = 256, kRestBytes = 1024;
  int64_t bytes = kRestBytes;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    bytes += 4 * hook_point.width + static_cast<int64_t>(hook_point.name.size()) + kNumberBytes;
  }
  const int64_t most = std::max<int64_t>(kMaxStatisticsBytes, request.max_message_bytes);
  if (bytes <= most) return absl::OkStatus();
  return InvalidField("hook_points", absl::StrCat("the mean vectors of these ", plan.hook_points.size(),
                                                  " hook points take ", bytes, " bytes, more than the ", most,
                                                  " of a message; ask for fewer at once, or raise max_message_bytes"));
}

absl::Status CheckFeed(const FeedSource& feed, int max_captures) {
  if (!IsName(feed.name)) {
    return InvalidField("feed.name", absl::StrCat("\"", feed.name.substr(0, kMaxNameBytes), "\" is not a name: 1 to ",
                                                  kMaxNameBytes, " of the characters A-Z a-z 0-9 . _ -"));
  }
  if (feed.start_when_subscribers < 0) {
    return InvalidField("feed.start_when_subscribers", absl::StrCat(feed.start_when_subscribers, " is negative"));
  }
  if (feed.start_when_subscribers > max_captures) {
    return InvalidField("feed.start_when_subscribers",
                        absl::StrCat(feed.start_when_subscribers, " is more than the ", max_captures,
                                     " captures that this server runs at once"));
  }
  return absl::OkStatus();
}

absl::Status TakeSource(CaptureRequest* request, const std::vector<const Dataset*>& datasets, CapturePlan* plan) {
  const ModelInfo& info = plan->model->info();
  if (const auto* dataset = std::get_if<DatasetSource>(&request->source)) {
    ASSIGN_OR_RETURN(plan->dataset, ResolveDatasetRange(*dataset, "dataset", info, plan->limits, datasets));
  } else if (auto* feed = std::get_if<FeedSource>(&request->source)) {
    RETURN_IF_ERROR(CheckFeed(*feed, plan->limits.max_captures));
    ASSIGN_OR_RETURN(plan->dataset, ResolveDatasetRange(feed->dataset, "feed.dataset", info, plan->limits, datasets));
    plan->feed = std::move(*feed);
  } else if (auto* tokens = std::get_if<TokenBatch>(&request->source)) {
    plan->tokens = std::move(*tokens);
  } else if (std::holds_alternative<StreamedSource>(request->source)) {
    plan->streams = true;
  } else {
    return InvalidField("source", "is missing; give one of tokens, text, dataset, feed");
  }
  return absl::OkStatus();
}

int64_t GroupSlabs(const CapturePlan& plan, int64_t rows) {
  RowPacking packing(plan.limits.slab_bytes);
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) packing.Skip(rows, hook_point.row_bytes);
  return packing.slabs();
}

absl::Status SizeGroups(CapturePlan* plan) {
  plan->group_rows = std::numeric_limits<int64_t>::max();
  for (const CapturePlan::HookPoint& hook_point : plan->hook_points) {
    const MessageShape shape{
        static_cast<int64_t>(hook_point.name.size()), hook_point.layout, plan->encoding, plan->provenance,
        plan->text.tokens != nullptr ? static_cast<int64_t>(plan->text.tokens->longest_text_bytes()) : 0};
    ASSIGN_OR_RETURN(const int64_t rows, MessageRows(shape, hook_point.name, plan->max_message_bytes));
    plan->group_rows = std::min(plan->group_rows, rows);
  }
  return absl::OkStatus();
}

// Gives the window room for two groups, so that one can be filled while the other is read, but at most a quarter of all
// slabs. Makes groups smaller if they need more.
absl::Status SizeWindow(CapturePlan* plan) {
  const CaptureLimits& limits = plan->limits;
  const int64_t most = std::max<int64_t>(1, limits.slab_count / 4);
  const auto window_for = [&](int64_t rows) { return 2 * GroupSlabs(*plan, rows); };
  if (window_for(1) > most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("hook_points: two rows of these ", plan->hook_points.size(), " hook points take ", window_for(1),
                     " slabs of ", limits.slab_bytes, " bytes, but a capture may have ", most, " of the server's ",
                     limits.slab_count, " (--slab-count); ask for fewer hook points"));
  }
  if (window_for(plan->group_rows) > most) {
    int64_t fits = 1;
    for (int64_t too_many = plan->group_rows; too_many - fits > 1;) {
      const int64_t middle = fits + (too_many - fits) / 2;
      (window_for(middle) <= most ? fits : too_many) = middle;
    }
    plan->group_rows = fits;
  }
  plan->group_slabs = GroupSlabs(*plan, plan->group_rows);
  plan->window_slabs = std::max(std::min(limits.window_slabs, most), 2 * plan->group_slabs);
  return absl::OkStatus();
}

std::string SourceText(const CapturePlan& plan) {
  const DatasetRange& range = plan.dataset;
  if (range.dataset == nullptr) return "client";
  std::string text = absl::StrCat("dataset ", range.dataset->name(), " ", range.dataset->fingerprint(), " ",
                                  range.sequence_length, " ", range.first_sequence, " ", range.sequence_count, " ",
                                  range.prepend_token_id.has_value() ? absl::StrCat(*range.prepend_token_id) : "none");
  // Parts with their original value are left out, so that recordings and tokens of older servers stay valid.
  if (range.epochs != 1) absl::StrAppend(&text, " epochs ", range.epochs);
  if (range.shuffle_seed.has_value()) absl::StrAppend(&text, " shuffled ", *range.shuffle_seed);
  if (range.skip_sequences != 0) absl::StrAppend(&text, " skips ", range.skip_sequences);
  return text;
}

// Names everything that decides which rows a capture has, except the model and the source.
std::string RowsText(const CapturePlan& plan) {
  std::string text;
  for (const CapturePlan::HookPoint& hook_point : plan.hook_points) {
    absl::StrAppend(&text, hook_point.name, " ", hook_point.budget,
                    plan.model->hook_points()[hook_point.index].fingerprint, "\n");
  }
  const Selection& selection = plan.selection;
  absl::StrAppend(&text, DtypeName(plan.dtype), " ", plan.provenance, " ", plan.deterministic, " ",
                  selection.skip_first, " ", selection.position_end, " ", selection.position_stride, " ",
                  selection.sample_rows, " ", selection.seed, " ", absl::StrJoin(selection.exclude_token_ids, ","));
  // Parts with their original value are left out, so that recordings and tokens of older servers stay valid.
  if (selection.last_only) absl::StrAppend(&text, " last");
  if (plan.top_k != 0) absl::StrAppend(&text, " top ", plan.top_k);
  if (plan.statistics_only) absl::StrAppend(&text, " statistics");
  return text;
}

// Sizes messages, row groups and the window; `max_message_bytes` must be set. That size decides how rows are cut into
// groups, so a resume token is bound to it.
absl::Status SizeMessages(CapturePlan* plan) {
  RETURN_IF_ERROR(SizeGroups(plan));
  RETURN_IF_ERROR(SizeWindow(plan));
  plan->digests.model = Xxh3Of64Bits(plan->model->info().fingerprint);
  plan->digests.source = Xxh3Of64Bits(SourceText(*plan));
  plan->digests.request = Xxh3Of64Bits(absl::StrCat(RowsText(*plan), " ", plan->max_message_bytes));
  return absl::OkStatus();
}

absl::Status Resume(const std::string& token, CapturePlan* plan) {
  ASSIGN_OR_RETURN(plan->position, DecodeResumeToken(token, plan->digests, static_cast<int>(plan->hook_points.size())));
  plan->resumes = true;
  plan->feed.reset();
  const ResumePosition& position = plan->position;
  if (position.group_rows > plan->group_rows) {
    return absl::FailedPreconditionError(
        absl::StrCat("resume_token: its position is inside a row group of ", position.group_rows,
                     " rows, but this server's slabs (--slab-bytes, --slab-count) allow ", plan->group_rows));
  }
  for (size_t i = 0; i < plan->hook_points.size(); ++i) {
    const bool has_group = static_cast<int64_t>(i) < position.group_hook_points;
    plan->hook_points[i].start =
        std::min(plan->hook_points[i].budget, position.rows + (has_group ? position.group_rows : 0));
  }
  return absl::OkStatus();
}

// Counts sequences until the largest budget is full. A resume begins inside its first sequence, of which
// position.sequence_rows rows were sent.
class RowCounter {
 public:
  explicit RowCounter(const CapturePlan& plan)
      : position_(plan.position), max_rows_(plan.max_budget), rows_(plan.position.rows) {}

  bool full() const { return rows_ >= max_rows_; }
  int64_t rows() const { return rows_; }

  void Add(int64_t sequence, int64_t selected) {
    if (sequence < position_.sequence) return;
    if (sequence == position_.sequence) selected = std::max<int64_t>(0, selected - position_.sequence_rows);
    rows_ = std::min(max_rows_, rows_ + selected);
  }

  // Adds sequences [begin, end), each of `selected` rows, until the budget is full. Returns how many that took.
  int64_t AddMany(int64_t begin, int64_t end, int64_t selected) {
    if (begin >= end || full() || selected == 0) return 0;
    Add(begin, selected);
    const int64_t missing = std::max<int64_t>(0, max_rows_ - rows_);
    const int64_t more = std::min(end - begin - 1, (missing + selected - 1) / selected);
    rows_ = std::min(max_rows_, rows_ + more * selected);
    return 1 + more;
  }

 private:
  const ResumePosition position_;
  const int64_t max_rows_;
  int64_t rows_;
};

}  // namespace

CaptureStarted CapturePlan::Started(const ResumePosition& begin) const {
  CaptureStarted started;
  started.model = model->info().name;
  started.fingerprint = model->info().fingerprint;
  for (const HookPoint& hook_point : hook_points) {
    started.hook_points.push_back(
        {hook_point.name, hook_point.width, hook_point.budget, hook_point.clipped, hook_point.start});
  }
  started.dtype = dtype;
  started.top_k = top_k;
  started.max_message_bytes = max_message_bytes;
  started.next_sequence = begin.batch_sequence;
  started.window_bytes = WindowBytes();
  started.resume_token = EncodeResumeToken(digests, begin);
  started.text = text;
  started.batch_tokens = limits.max_batch_tokens;
  return started;
}

CaptureEstimate CapturePlan::Estimate() const {
  CaptureEstimate estimate;
  RowCounter counter(*this);
  if (dataset.dataset != nullptr) {
    const int64_t selected = SelectedPositions(selection, dataset.length());
    estimate.sequences = counter.AddMany(position.sequence, dataset.end(), selected);
    estimate.tokens = estimate.sequences * dataset.length();
  } else {
    int64_t index = position.batch_sequence;
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < tokens.sequences() && !counter.full(); ++i) {
      const absl::Span<const uint32_t> ids = tokens[i];
      positions.clear();
      SelectPositions(selection, index, ids, &positions);
      counter.Add(index++, static_cast<int64_t>(positions.size()));
      ++estimate.sequences;
      estimate.tokens += static_cast<int64_t>(ids.size());
    }
  }
  for (const HookPoint& hook_point : hook_points) {
    const int64_t rows = std::max<int64_t>(0, std::min(counter.rows(), hook_point.budget) - hook_point.start);
    estimate.hook_points.push_back({hook_point.name, rows, rows * hook_point.row_bytes});
    estimate.bytes += rows * hook_point.row_bytes;
    estimate.layers = std::max(estimate.layers, model->hook_points()[hook_point.index].layer + 1);
  }
  estimate.layers = std::max(estimate.layers, 1);
  return estimate;
}

std::string CapturePlan::Digest() const {
  Xxh3 hash;
  hash.UpdateWithLength(model->info().fingerprint);
  hash.UpdateWithLength(SourceText(*this));
  hash.UpdateWithLength(RowsText(*this));
  for (int64_t i = 0; i < tokens.sequences(); ++i) {
    const absl::Span<const uint32_t> ids = tokens[i];
    hash.UpdateWithLength(absl::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(uint32_t)));
  }
  return hash.hex();
}

absl::Status CapturePlan::ContinueFrom(const std::string& resume_token, int64_t message_bytes) {
  ASSIGN_OR_RETURN(max_message_bytes, ResolveMessageBytes(message_bytes));
  RETURN_IF_ERROR(SizeMessages(this));
  RETURN_IF_ERROR(Resume(resume_token, this));
  tokens.RemoveFirst(std::min(position.batch_sequence, tokens.sequences()));
  return absl::OkStatus();
}

absl::StatusOr<CapturePlan> MakeCapturePlan(CaptureRequest request, const Model& model, const CaptureLimits& limits,
                                            const std::vector<const Dataset*>& datasets) {
  CapturePlan plan;
  plan.model = &model;
  plan.limits = limits;
  plan.dtype = request.dtype;
  plan.encoding = request.encoding;
  plan.provenance = request.provenance;
  plan.text = std::move(request.text);
  plan.deterministic = request.deterministic;
  plan.statistics_only = request.statistics_only;
  if (request.top_k < 0) return InvalidField("top_k", absl::StrCat(request.top_k, " is negative; 0 sends whole rows"));
  plan.top_k = request.top_k;
  RETURN_IF_ERROR(ResolveHookPoints(request, &plan));
  if (plan.statistics_only) RETURN_IF_ERROR(CheckStatisticsFit(request, plan));
  ASSIGN_OR_RETURN(plan.selection, NormalizeSelection(std::move(request.selection), model.info().vocabulary_size,
                                                      limits.max_sequence_length));
  RETURN_IF_ERROR(TakeSource(&request, datasets, &plan));
  ASSIGN_OR_RETURN(plan.max_message_bytes, ResolveMessageBytes(request.max_message_bytes));
  RETURN_IF_ERROR(SizeMessages(&plan));
  if (plan.dataset.dataset != nullptr) plan.position.sequence = plan.position.batch_sequence = plan.dataset.begin();
  if (!request.resume_token.empty()) RETURN_IF_ERROR(Resume(request.resume_token, &plan));
  if (plan.resumes && plan.text.tokens_are_whole) {
    plan.tokens.RemoveFirst(std::min(plan.position.batch_sequence, plan.tokens.sequences()));
  }
  // A resume needs no sequences if the first capture had taken them all.
  const bool needs_tokens = plan.dataset.dataset == nullptr && !plan.streams;
  if (needs_tokens && !(plan.resumes && plan.tokens.empty())) {
    RETURN_IF_ERROR(CheckTokens(plan.tokens, "tokens", /*first_sequence=*/0, model.info(), limits));
  }
  return plan;
}

}  // namespace hookline
