#include "server/recorder/replay_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/hash.h"
#include "server/base/status.h"
#include "server/capture/budgets.h"
#include "server/capture/limits.h"
#include "server/capture/message_size.h"
#include "server/model/hook_points.h"

namespace hookline {
namespace {

absl::Status ResolveHookPoints(const Manifest& manifest, const ReplayRequest& request, ReplayPlan& plan) {
  std::vector<HookPoint> points;
  for (const RecordedHookPoint& recorded : manifest.hook_points) {
    HookPoint& point = points.emplace_back();
    point.name = recorded.name;
    point.width = recorded.width;
  }
  const auto add = [&](int index, const std::string& name) {
    const int64_t row_bytes = manifest.LayoutOf(index).bytes();
    plan.hook_points.push_back({index, name, row_bytes, 0});
  };
  const HookPoints all(std::move(points));
  if (request.hook_points.empty()) {
    for (int i = 0; i < all.size(); ++i) add(i, all[i].name);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<ResolvedHookPoint> resolved, all.Resolve(request.hook_points, all.size()));
  for (const ResolvedHookPoint& point : resolved) add(point.index, point.name);
  return absl::OkStatus();
}

absl::Status SetBudgets(const Manifest& manifest, const ReplayRequest& request, ReplayPlan& plan) {
  std::vector<std::string> names;
  std::vector<int64_t> available;
  for (const ReplayPlan::HookPoint& point : plan.hook_points) {
    const int64_t end = std::min(plan.first_row + plan.rows, manifest.RowsOf(point.index));
    names.push_back(point.name);
    available.push_back(std::max<int64_t>(0, end - plan.first_row));
    if (request.shuffle_seed.has_value() && available.back() != plan.rows) {
      return InvalidField("shuffle_seed", absl::StrCat(point.name, " has ", manifest.RowsOf(point.index),
                                                       " rows, but the range ends at ", plan.first_row + plan.rows,
                                                       "; shuffling needs all rows of every hook point"));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<Budget> budgets,
                   ResolveBudgets(request.max_activations, request.max_activations_by_hook_point, names, available));
  plan.is_budgeted = request.max_activations.has_value();
  for (size_t i = 0; i < budgets.size(); ++i) {
    plan.hook_points[i].budget = budgets[i].rows;
    plan.most_rows = std::max(plan.most_rows, budgets[i].rows);
  }
  return absl::OkStatus();
}

absl::Status SizeGroups(const Manifest& manifest, const ReplayRequest& request, ReplayPlan& plan) {
  plan.group_rows = std::max<int64_t>(1, plan.most_rows);
  for (const ReplayPlan::HookPoint& point : plan.hook_points) {
    MessageShape shape;
    shape.hook_point_name_bytes = static_cast<int64_t>(point.name.size());
    shape.layout = manifest.LayoutOf(point.index);
    shape.encoding = request.encoding;
    shape.provenance = request.provenance;
    ASSIGN_OR_RETURN(const int64_t rows, MessageRows(shape, point.name, plan.max_message_bytes));
    plan.group_rows = std::min(plan.group_rows, rows);
  }
  return absl::OkStatus();
}

// The digests of everything on which a token depends, in the parts that the errors of DecodeResumeToken distinguish.
CaptureDigests DigestsOf(const Manifest& manifest, const ReplayRequest& request, const ReplayPlan& plan) {
  const std::string order =
      request.shuffle_seed.has_value() ? absl::StrCat(*request.shuffle_seed) : std::string("in order");
  std::string rest = absl::StrCat(plan.group_rows, " ", plan.provenance);
  for (const ReplayPlan::HookPoint& point : plan.hook_points)
    absl::StrAppend(&rest, " ", point.name, " ", point.budget);
  CaptureDigests digests;
  digests.model = Xxh3Of64Bits(absl::StrCat("recorded ", manifest.fingerprint));
  digests.source = Xxh3Of64Bits(absl::StrCat("recording ", manifest.name, " ", manifest.request_digest, " ",
                                             plan.first_row, " ", plan.rows, " ", order));
  digests.request = Xxh3Of64Bits(rest);
  return digests;
}

}  // namespace

ReplayPosition ReplayPlan::SkipToChunk(ReplayPosition position) const {
  const auto count = static_cast<int32_t>(hook_points.size());
  while (position.row < most_rows) {
    while (position.hook_points < count && hook_points[position.hook_points].budget <= position.row) {
      ++position.hook_points;
    }
    if (position.hook_points < count) break;
    position = {std::min(position.row + group_rows, most_rows), 0};
  }
  return position;
}

int64_t ReplayPlan::SentOf(int hook_point, const ReplayPosition& position) const {
  const int64_t sent = position.row + (hook_point < position.hook_points ? group_rows : 0);
  return std::min(sent, hook_points[hook_point].budget);
}

std::vector<RowRange> ReplayPlan::RangesOf(int64_t row, int64_t count) const {
  if (!order.has_value()) return {{first_row + row, count, 0}};
  std::vector<RowRange> ranges;
  ranges.reserve(count);
  for (int64_t i = 0; i < count; ++i) ranges.push_back({first_row + (*order)[row + i], 1, i});
  std::sort(ranges.begin(), ranges.end(),
            [](const RowRange& a, const RowRange& b) { return a.first_row < b.first_row; });
  return ranges;
}

int64_t ReplayPlan::ChunkBytes() const {
  int64_t bytes = 1;
  for (const HookPoint& point : hook_points) bytes = std::max(bytes, group_rows * point.row_bytes);
  return bytes;
}

std::string ReplayPlan::Token(const ReplayPosition& position) const {
  ResumePosition token;
  token.rows = position.row;
  token.group_rows = position.hook_points > 0 ? group_rows : 0;
  token.group_hook_points = position.hook_points;
  return EncodeResumeToken(digests, token);
}

absl::StatusOr<ReplayPosition> ReplayPlan::ReadToken(absl::string_view token) const {
  ASSIGN_OR_RETURN(const ResumePosition read, DecodeResumeToken(token, digests, static_cast<int>(hook_points.size())));
  const ReplayPosition position{read.rows, static_cast<int32_t>(read.group_hook_points)};
  // The last row group may be short, so the end need not be a multiple of group_rows.
  const bool is_end = position.row == most_rows && position.hook_points == 0;
  const bool begins_group = position.row < most_rows && position.row % group_rows == 0;
  if (!is_end && !begins_group) return InvalidField("resume_token", "damaged: no message of this read ends there");
  return position;
}

absl::StatusOr<ReplayPlan> PlanReplay(const Manifest& manifest, const ReplayRequest& request) {
  ReplayPlan plan;
  ASSIGN_OR_RETURN(plan.max_message_bytes, ResolveMessageBytes(request.max_message_bytes));
  if (request.first_row < 0 || request.first_row > manifest.rows()) {
    return InvalidField("first_row", absl::StrCat(request.first_row, " is not from 0 to ", manifest.rows(),
                                                  ", the rows of recording ", manifest.name));
  }
  if (request.row_count < 0) return InvalidField("row_count", absl::StrCat(request.row_count, " is negative"));
  plan.first_row = request.first_row;
  plan.rows = manifest.rows() - request.first_row;
  if (request.row_count > 0) plan.rows = std::min(plan.rows, request.row_count);
  plan.provenance = request.provenance;
  RETURN_IF_ERROR(ResolveHookPoints(manifest, request, plan));
  RETURN_IF_ERROR(SetBudgets(manifest, request, plan));
  RETURN_IF_ERROR(SizeGroups(manifest, request, plan));
  if (request.shuffle_seed.has_value() && plan.rows > 0) plan.order.emplace(plan.rows, *request.shuffle_seed);
  plan.digests = DigestsOf(manifest, request, plan);
  return plan;
}

}  // namespace hookline
