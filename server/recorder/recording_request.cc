#include "server/recorder/recording_request.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

nlohmann::json SourceJson(const CapturePlan& plan) {
  if (const DatasetRange& range = plan.dataset; range.dataset != nullptr) {
    nlohmann::json json = {{"name", range.dataset->name()},
                           {"fingerprint", range.dataset->fingerprint()},
                           {"sequence_length", range.sequence_length},
                           {"first_sequence", range.first_sequence},
                           {"sequence_count", range.sequence_count}};
    if (range.prepend_token_id.has_value()) json["prepend_token_id"] = *range.prepend_token_id;
    if (range.shuffle_seed.has_value()) json["shuffle_seed"] = *range.shuffle_seed;
    if (range.epochs != 1) json["epochs"] = range.epochs;
    if (range.skip_sequences != 0) json["skip_sequences"] = range.skip_sequences;
    return {{"dataset", std::move(json)}};
  }
  return {{"tokens", {{"sequences", static_cast<uint64_t>(plan.tokens.sequences())}}}};
}

nlohmann::json SelectionJson(const Selection& selection) {
  nlohmann::json json = nlohmann::json::object();
  if (selection.skip_first != 0) json["skip_first"] = selection.skip_first;
  if (selection.position_end != 0) json["position_end"] = selection.position_end;
  if (selection.position_stride > 1) json["position_stride"] = selection.position_stride;
  if (!selection.exclude_token_ids.empty()) json["exclude_token_ids"] = selection.exclude_token_ids;
  if (selection.sample_rows != 0) json["sample_rows"] = selection.sample_rows;
  if (selection.seed != 0) json["seed"] = selection.seed;
  if (selection.last_only) json["last_only"] = true;
  return json;
}

}  // namespace

Manifest ManifestOf(const std::string& name, const std::string& request_digest, const CapturePlan& plan) {
  const CaptureStarted started = plan.Started();
  Manifest manifest;
  manifest.name = name;
  manifest.model = started.model;
  manifest.fingerprint = started.fingerprint;
  manifest.request_digest = request_digest;
  manifest.deterministic = plan.deterministic;
  manifest.dtype = started.dtype;
  manifest.top_k = started.top_k;
  for (const CaptureStarted::HookPoint& point : started.hook_points) {
    manifest.hook_points.push_back({point.name, point.width, point.max_activations});
  }
  manifest.source = SourceJson(plan);
  manifest.selection = SelectionJson(plan.selection);
  manifest.resume_token = started.resume_token;
  manifest.resume_message_bytes = started.max_message_bytes;
  return manifest;
}

absl::Status CheckContinues(const Manifest& manifest, const CaptureStarted& started) {
  const auto differs = [&](absl::string_view what, const auto& recorded, const auto& now) {
    return absl::FailedPreconditionError(absl::StrCat("recording ", manifest.name, ": its ", what, " is ", recorded,
                                                      ", this capture's is ", now, "; record under another name"));
  };
  if (manifest.fingerprint != started.fingerprint) {
    return differs("model's fingerprint", manifest.fingerprint, started.fingerprint);
  }
  if (manifest.dtype != started.dtype) return differs("dtype", DtypeName(manifest.dtype), DtypeName(started.dtype));
  if (manifest.top_k != started.top_k) return differs("top_k", manifest.top_k, started.top_k);
  if (manifest.hook_points.size() != started.hook_points.size()) {
    return differs("number of hook points", manifest.hook_points.size(), started.hook_points.size());
  }
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    const RecordedHookPoint& recorded = manifest.hook_points[i];
    const CaptureStarted::HookPoint& now = started.hook_points[i];
    if (recorded.name != now.name) return differs(absl::StrCat("hook point ", i), recorded.name, now.name);
    if (recorded.width != now.width) return differs(absl::StrCat("width of ", now.name), recorded.width, now.width);
    if (recorded.max_activations != now.max_activations) {
      return differs(absl::StrCat("budget of ", now.name), recorded.max_activations, now.max_activations);
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
