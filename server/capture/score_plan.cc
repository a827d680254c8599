#include "server/capture/score_plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/capture/token_batch.h"

namespace hookline {
namespace {

// At the end of a pass the rows of all variants are in the device's memory; more can be sent in another request.
constexpr size_t kMaxVariants = 64;
// One variant may have this many: more than any model has hook points.
constexpr size_t kMaxInterventions = 1024;
constexpr size_t kMaxNameBytes = 128;
// A pass that pauses holds at most 1/kPausedShare of what all of them may hold, so that a slow client leaves room
// for others.
constexpr int64_t kPausedShare = 4;
// Each position may have this many: as many as people read, so that messages stay small.
constexpr int64_t kMaxTopLogits = 100;
constexpr size_t kMaxProbabilityIds = 100;
// The outputs of one forward pass may take this much on the host, until the client has read them.
constexpr int64_t kMaxUnitBytes = int64_t{256} << 20;
// A sequence's score under one variant is one message, and clients receive messages of up to 4 MiB. This leaves 4096
// bytes for the other fields.
constexpr int64_t kMaxScoreBytes = (int64_t{4} << 20) - 4096;

// Returns a status's message without the path of its field.
absl::string_view MessageOf(const absl::Status& status) {
  return absl::StripPrefix(status.message(), absl::StrCat(FieldOf(status), ": "));
}

absl::Status CheckFinite(absl::Span<const float> values, const std::string& field) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return InvalidField(absl::StrCat(field, "[", i, "]"), absl::StrCat(values[i], " is not finite"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckWidth(const std::vector<float>& values, int64_t width, const std::string& field) {
  if (static_cast<int64_t>(values.size()) != width) {
    return InvalidField(field, absl::StrCat("has ", values.size(), " values, but must have ", width,
                                            ", the width of what it applies to"));
  }
  return CheckFinite(values, field);
}

// Returns the index of the dictionary of that name, which must reconstruct the hook point.
absl::StatusOr<int> FindDictionary(const std::string& name, const Model& model, int hook_point,
                                   const std::string& field) {
  std::vector<std::string> names;
  for (size_t i = 0; i < model.dictionaries().size(); ++i) {
    const AttachedDictionary& one = model.dictionaries()[i];
    names.push_back(one.info.name);
    if (one.info.name != name) continue;
    if (one.output_point == hook_point) return static_cast<int>(i);
    return InvalidField(
        field, absl::StrCat("dictionary \"", name, "\" reconstructs ", model.hook_points()[one.output_point].name,
                            ", not ", model.hook_points()[hook_point].name));
  }
  return InvalidField(field, absl::StrCat("no dictionary \"", name, "\" beside model \"", model.info().name,
                                          "\"; there are ", names.empty() ? "none" : absl::StrJoin(names, ", ")));
}

absl::Status TakeDictionary(const InterventionRequest& request, const Model& model, const std::string& field,
                            Intervention* made) {
  if (made->head >= 0) {
    return InvalidField(field + ".head", "a dictionary replaces the rows that it encodes; leave it out");
  }
  if (const auto* rows = std::get_if<DictionaryRows>(&request.operation)) {
    made->operation = Intervention::Operation::kDictionary;
    ASSIGN_OR_RETURN(made->dictionary, FindDictionary(rows->name, model, made->hook_point, field + ".dictionary"));
    return absl::OkStatus();
  }
  const auto& latents = std::get<EditLatents>(request.operation);
  const std::string own = field + ".latents";
  made->operation = Intervention::Operation::kLatents;
  made->keeps_error = latents.keep_error;
  ASSIGN_OR_RETURN(made->dictionary, FindDictionary(latents.dictionary, model, made->hook_point, own + ".dictionary"));
  if (latents.edits.empty() || latents.edits.size() > kMaxInterventions) {
    return InvalidField(own + ".edits", absl::StrCat("has ", latents.edits.size(), "; give 1 to ", kMaxInterventions));
  }
  const int64_t count = model.dictionaries()[static_cast<size_t>(made->dictionary)].info.latents;
  std::set<int64_t> seen;
  for (size_t i = 0; i < latents.edits.size(); ++i) {
    const LatentEditRequest& asked = latents.edits[i];
    const std::string one = absl::StrCat(own, ".edits[", i, "]");
    if (asked.latent < 0 || asked.latent >= count) {
      return InvalidField(one + ".latent", absl::StrCat(asked.latent, " is not a latent, 0 to ", count - 1));
    }
    if (!seen.insert(asked.latent).second) return InvalidField(one + ".latent", "is given twice");
    LatentEdit edit{asked.latent, LatentEdit::Kind::kClamp, 0};
    if (const auto* value = std::get_if<double>(&asked.operation)) {
      edit.value = *value;
    } else if (const auto* factor = std::get_if<ScaleRows>(&asked.operation)) {
      edit = {asked.latent, LatentEdit::Kind::kScale, factor->factor};
    } else if (!std::holds_alternative<ZeroRows>(asked.operation)) {
      return InvalidField(one, "has no operation; give one of clamp, scale, ablate");
    }
    if (!std::isfinite(edit.value)) return InvalidField(one, "is not finite");
    made->edits.push_back(edit);
  }
  return absl::OkStatus();
}

// Fills in the operation of `made`, whose hook point and head are known; `width` is the width of what it applies to.
absl::Status TakeOperation(const InterventionRequest& request, const Model& model, int64_t width,
                           const std::string& field, Intervention* made) {
  using Operation = Intervention::Operation;
  if (std::holds_alternative<ZeroRows>(request.operation)) {
    made->operation = Operation::kZero;
  } else if (const auto* mean = std::get_if<MeanRows>(&request.operation)) {
    made->operation = mean->vector.empty() ? Operation::kBatchMean : Operation::kMean;
    made->vector = mean->vector;
    if (!mean->vector.empty()) RETURN_IF_ERROR(CheckWidth(mean->vector, width, field + ".mean.vector"));
  } else if (const auto* add = std::get_if<AddVector>(&request.operation)) {
    made->operation = Operation::kAdd;
    made->vector = add->vector;
    made->factor = add->scale;
    RETURN_IF_ERROR(CheckWidth(add->vector, width, field + ".add.vector"));
    if (!std::isfinite(add->scale)) return InvalidField(field + ".add.scale", "is not finite");
  } else if (const auto* scale = std::get_if<ScaleRows>(&request.operation)) {
    made->operation = Operation::kScale;
    made->factor = scale->factor;
    if (!std::isfinite(scale->factor)) return InvalidField(field + ".scale.factor", "is not finite");
  } else if (const auto* project = std::get_if<ProjectOut>(&request.operation)) {
    made->operation = Operation::kProjectOut;
    made->vector = project->direction;
    RETURN_IF_ERROR(CheckWidth(project->direction, width, field + ".project_out.direction"));
    if (std::all_of(project->direction.begin(), project->direction.end(), [](float value) { return value == 0; })) {
      return InvalidField(field + ".project_out.direction", "is zero, which is not a direction");
    }
  } else if (const auto* set = std::get_if<SetRows>(&request.operation)) {
    made->operation = Operation::kSet;
    if (set->rows.empty() || (set->rows.size() != 1 && set->rows.size() != request.positions.size())) {
      return InvalidField(field + ".set.rows", absl::StrCat(set->rows.size(), " rows for ", request.positions.size(),
                                                            " positions; give one row for all, or one for each"));
    }
    for (size_t i = 0; i < set->rows.size(); ++i) {
      RETURN_IF_ERROR(CheckWidth(set->rows[i], width, absl::StrCat(field, ".set.rows[", i, "].values")));
      made->vector.insert(made->vector.end(), set->rows[i].begin(), set->rows[i].end());
    }
  } else if (std::holds_alternative<ClientRows>(request.operation)) {
    made->operation = Operation::kClient;
  } else if (std::holds_alternative<std::monostate>(request.operation)) {
    return InvalidField(field,
                        "has no operation; give one of zero, mean, add, scale, project_out, set, dictionary, latents, "
                        "client");
  } else {
    return TakeDictionary(request, model, field, made);
  }
  return absl::OkStatus();
}

// Positions ascend in the plan, and so do the rows that are set there.
absl::Status TakePositions(const InterventionRequest& request, int64_t longest, const std::string& field,
                           Intervention* made) {
  std::map<int64_t, size_t> order;  // each position's index in the request
  for (size_t i = 0; i < request.positions.size(); ++i) {
    const std::string name = absl::StrCat(field, ".positions[", i, "]");
    const int64_t position = request.positions[i];
    if (position < 0 || position >= longest) {
      return InvalidField(
          name, absl::StrCat(position, " is not a position: the longest sequence has positions 0 to ", longest - 1));
    }
    if (!order.emplace(position, i).second) return InvalidField(name, absl::StrCat(position, " is given twice"));
  }
  const size_t width = made->vector.size() / std::max<size_t>(1, request.positions.size());
  const bool one_each = made->operation == Intervention::Operation::kSet &&
                        std::get<SetRows>(request.operation).rows.size() == request.positions.size();
  std::vector<float> rows;
  for (const auto& [position, i] : order) {
    made->positions.push_back(position);
    if (one_each) rows.insert(rows.end(), &made->vector[i * width], &made->vector[i * width] + width);
  }
  if (one_each && !request.positions.empty()) made->vector = std::move(rows);
  return absl::OkStatus();
}

// Sets `name` to that of the hook point, as it was asked for.
absl::StatusOr<Intervention> TakeIntervention(const InterventionRequest& request, const Model& model, int64_t longest,
                                              const std::string& field, std::string* name) {
  const auto resolved = model.hook_points().Resolve({request.hook_point}, /*max_hook_points=*/1);
  if (!resolved.ok()) return InvalidField(field + ".hook_point", MessageOf(resolved.status()));
  Intervention made;
  made.hook_point = resolved->front().index;
  *name = resolved->front().name;
  const HookPoint& point = model.hook_points()[made.hook_point];
  if (point.observation) {
    return InvalidField(field + ".hook_point",
                        absl::StrCat(point.name, " is only observed: nothing that is computed later reads it"));
  }
  int64_t width = point.width;
  if (request.head.has_value()) {
    if (point.heads == 0) {
      return InvalidField(field + ".head", absl::StrCat(point.name, " is not divided into heads; leave it out"));
    }
    if (*request.head < 0 || *request.head >= point.heads) {
      return InvalidField(field + ".head",
                          absl::StrCat(*request.head, " is not a head of ", point.name, ", 0 to ", point.heads - 1));
    }
    made.head = static_cast<int>(*request.head);
    width /= point.heads;
  }
  RETURN_IF_ERROR(TakeOperation(request, model, width, field, &made));
  RETURN_IF_ERROR(TakePositions(request, longest, field, &made));
  RETURN_IF_ERROR(CheckIgnoredIds(field + ".ignore_token_ids", request.ignore_token_ids.size()));
  made.ignored_token_ids = request.ignore_token_ids;
  return made;
}

// Checks that a variant asks the client for rows at most once at each hook point, since the pass pauses there once.
absl::Status CheckClientRows(const Variant& variant, const ScoreRequest& request, const std::string& field) {
  std::set<int> asked;
  for (size_t i = 0; i < variant.interventions.size(); ++i) {
    const Intervention& one = variant.interventions[i];
    if (one.operation != Intervention::Operation::kClient) continue;
    const std::string name = absl::StrCat(field, ".interventions[", i, "].client");
    if (!request.client_answers) return InvalidField(name, "clients answer rows only in Substitute; call that instead");
    if (!asked.insert(one.hook_point).second) {
      return InvalidField(name,
                          "this variant already has one at the same hook point; give only one, or use two variants");
    }
  }
  return absl::OkStatus();
}

absl::Status TakeVariants(const ScoreRequest& request, int64_t longest, ScorePlan* plan) {
  if (request.variants.size() > kMaxVariants) {
    return InvalidField("variants", absl::StrCat(request.variants.size(), " are more than ", kMaxVariants,
                                                 "; send the rest in another request"));
  }
  std::set<std::string> names;
  bool asks = false;
  for (size_t v = 0; v < request.variants.size(); ++v) {
    const VariantRequest& asked = request.variants[v];
    const std::string field = absl::StrCat("variants[", v, "]");
    if (asked.name.empty() || asked.name.size() > kMaxNameBytes) {
      return InvalidField(field + ".name", absl::StrCat("has ", asked.name.size(), " bytes; give 1 to ", kMaxNameBytes,
                                                        " (the clean pass is named \"\")"));
    }
    if (!names.insert(asked.name).second) return InvalidField(field + ".name", "is the name of another variant too");
    if (asked.interventions.empty() || asked.interventions.size() > kMaxInterventions) {
      return InvalidField(field + ".interventions",
                          absl::StrCat("has ", asked.interventions.size(), "; give 1 to ", kMaxInterventions));
    }
    Variant variant;
    variant.name = asked.name;
    std::vector<std::string>& replaced = plan->replaced_names.emplace_back();
    for (size_t i = 0; i < asked.interventions.size(); ++i) {
      ASSIGN_OR_RETURN(Intervention made,
                       TakeIntervention(asked.interventions[i], *plan->model, longest,
                                        absl::StrCat(field, ".interventions[", i, "]"), &replaced.emplace_back()));
      plan->in_one_pass |= made.operation == Intervention::Operation::kBatchMean;
      asks |= made.operation == Intervention::Operation::kClient;
      variant.interventions.push_back(std::move(made));
    }
    RETURN_IF_ERROR(CheckClientRows(variant, request, field));
    plan->variants.push_back(std::move(variant));
  }
  if (request.client_answers && !asks) {
    return InvalidField("variants", "no intervention is `client`, so there is nothing to answer; call Score instead");
  }
  plan->sent_variants = plan->variants.size();
  return absl::OkStatus();
}

// Adds a variant with zeros for each set of places where variants intervene.
void AddZeroVariants(ScorePlan* plan) {
  using Place = std::tuple<int, std::vector<int64_t>, std::vector<uint32_t>, int>;
  std::map<std::set<Place>, size_t> zeros;
  for (size_t v = 0; v < plan->sent_variants; ++v) {
    std::set<Place> places;
    for (const Intervention& one : plan->variants[v].interventions) {
      places.insert({one.hook_point, one.positions, one.ignored_token_ids, one.head});
    }
    const auto [found, is_new] = zeros.emplace(places, plan->variants.size());
    plan->zero_of.push_back(found->second);
    if (!is_new) continue;
    Variant zero;
    for (const auto& [hook_point, positions, ignored, head] : places) {
      Intervention one;
      one.hook_point = hook_point;
      one.positions = positions;
      one.ignored_token_ids = ignored;
      one.head = head;
      zero.interventions.push_back(std::move(one));
    }
    plan->variants.push_back(std::move(zero));
  }
}

// Scores come in the order of the dataset, each sequence once.
absl::Status CheckOrder(const DatasetSource& dataset) {
  const char* const field = dataset.shuffle_seed.has_value() ? "dataset.shuffle_seed"
                            : dataset.epochs > 1             ? "dataset.epochs"
                            : dataset.skip_sequences != 0    ? "dataset.skip_sequences"
                                                             : nullptr;
  if (field == nullptr) return absl::OkStatus();
  return InvalidField(field, "does not apply to scores, which come in the dataset's order; leave it out");
}

absl::Status TakeSource(ScoreRequest* request, const CaptureLimits& limits, const std::vector<const Dataset*>& datasets,
                        ScorePlan* plan) {
  const ModelInfo& info = plan->model->info();
  if (auto* tokens = std::get_if<TokenBatch>(&request->source)) {
    RETURN_IF_ERROR(CheckTokens(*tokens, "tokens", /*first_sequence=*/0, info, limits));
    plan->tokens = std::move(*tokens);
  } else if (const auto* dataset = std::get_if<DatasetSource>(&request->source)) {
    RETURN_IF_ERROR(CheckOrder(*dataset));
    ASSIGN_OR_RETURN(plan->dataset, ResolveDatasetRange(*dataset, "dataset", info, limits, datasets));
  } else {
    return InvalidField("source", "is missing; give one of tokens, text, dataset");
  }
  return absl::OkStatus();
}

absl::Status TakeOutputs(const ScoreRequest& request, const CaptureLimits& limits, ScorePlan* plan) {
  const ModelInfo& info = plan->model->info();
  ScoreOutputs& outputs = plan->outputs;
  if (request.rows_only) {
    if (request.hook_points.empty()) {
      return InvalidField("outputs.rows_only", "is set, but outputs.hook_points names none");
    }
    if (request.per_token_loss || request.kl || request.loss_recovered || request.top_logits != 0 ||
        !request.log_probability_token_ids.empty()) {
      return InvalidField("outputs.rows_only", "is set, but outputs of logits are asked for; leave one of them out");
    }
  }
  const int64_t most = std::min(kMaxTopLogits, info.vocabulary_size);
  if (request.top_logits < 0 || request.top_logits > most) {
    return InvalidField("outputs.top_logits", absl::StrCat(request.top_logits, " is not from 0 to ", most));
  }
  if (request.log_probability_token_ids.size() > kMaxProbabilityIds) {
    return InvalidField("outputs.log_probability_token_ids", absl::StrCat(request.log_probability_token_ids.size(),
                                                                          " ids are more than ", kMaxProbabilityIds));
  }
  for (size_t i = 0; i < request.log_probability_token_ids.size(); ++i) {
    if (request.log_probability_token_ids[i] >= info.vocabulary_size) {
      return InvalidField(absl::StrCat("outputs.log_probability_token_ids[", i, "]"),
                          absl::StrCat("token id ", request.log_probability_token_ids[i],
                                       " is not below the vocabulary's size ", info.vocabulary_size));
    }
  }
  outputs.rows_only = request.rows_only;
  outputs.token_loss = request.per_token_loss;
  outputs.kl = request.kl;
  outputs.top_logits = static_cast<int>(request.top_logits);
  outputs.probability_of = request.log_probability_token_ids;
  if (request.hook_points.empty()) return absl::OkStatus();
  auto resolved = plan->model->hook_points().Resolve(request.hook_points, limits.max_hook_points);
  if (!resolved.ok()) {
    return InvalidField(absl::StrCat("outputs.", FieldOf(resolved.status())), MessageOf(resolved.status()));
  }
  std::sort(resolved->begin(), resolved->end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  for (const ResolvedHookPoint& point : *resolved) {
    outputs.hook_points.push_back(point.index);
    plan->hook_points.push_back(point.name);
  }
  return absl::OkStatus();
}

// Returns the bytes that a position's rows for the client take on the host, until they are answered and used.
int64_t AskedBytes(const ScorePlan& plan) {
  int64_t bytes = 0;
  for (const Variant& variant : plan.variants) {
    for (const Intervention& one : variant.interventions) {
      if (one.operation != Intervention::Operation::kClient) continue;
      bytes += plan.model->hook_points()[one.hook_point].width * int64_t{sizeof(float)};
    }
  }
  return bytes;
}

absl::Status CheckPaused(const ScorePlan& plan, int64_t longest) {
  if (plan.max_paused_positions == 0 || 2 * longest <= plan.max_paused_positions) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("tokens: a sequence of ", longest, " tokens and its variant have ", 2 * longest,
                   " positions, more than the ", plan.max_paused_positions,
                   " that a pass may hold on the device while it waits for the client, a quarter of "
                   "--max-paused-tokens; send shorter sequences"));
}

absl::Status CheckSizes(ScorePlan* plan, int64_t longest) {
  const ScoreOutputs& outputs = plan->outputs;
  // The bytes of the message with a score; repeated fields of top logits have lengths and tags too.
  const int64_t score_bytes =
      12 + (outputs.top_logits > 0 ? 13 * outputs.top_logits + 16 : 0) +
      (outputs.probability_of.empty() ? 0 : 4 * static_cast<int64_t>(outputs.probability_of.size()) + 8);
  if (longest * score_bytes > kMaxScoreBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("outputs: the score of a sequence of ", longest, " tokens takes ",
                                                     longest * score_bytes, " bytes, more than the ", kMaxScoreBytes,
                                                     " of a message; ask for fewer top_logits or "
                                                     "log_probability_token_ids, or send shorter sequences"));
  }
  plan->position_bytes = score_bytes;
  for (int hook_point : outputs.hook_points) {
    plan->position_bytes += plan->model->hook_points()[hook_point].width * int64_t{sizeof(float)};
  }
  plan->position_bytes += AskedBytes(*plan);
  RETURN_IF_ERROR(CheckPaused(*plan, longest));
  const int64_t passes = plan->variants.empty() ? 1 : 2;
  if (longest * passes * plan->position_bytes > kMaxUnitBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("outputs.hook_points: rows of a sequence of ", longest,
                                                     " tokens take ", longest * passes * plan->position_bytes,
                                                     " bytes, more than ", kMaxUnitBytes,
                                                     "; ask for fewer hook points, or capture them"));
  }
  if (!plan->in_one_pass) return absl::OkStatus();
  const ScoreUnit unit = plan->Unit(0, 0);
  int64_t most = plan->max_batch_tokens;
  if (plan->max_paused_positions > 0) most = std::min(most, plan->max_paused_positions);
  if (unit.positions > std::max(most, 2 * longest) || unit.positions * plan->position_bytes > kMaxUnitBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("variants: a mean over the batch needs all sequences in one forward pass, ", unit.positions,
                     " positions with the clean pass, more than the ", most,
                     " that one may have (--max-batch-tokens, in Substitute also --max-paused-tokens); give the mean "
                     "as a vector, or send fewer sequences"));
  }
  return absl::OkStatus();
}

}  // namespace

ScoreUnit ScorePlan::Unit(int64_t first_sequence, size_t first_variant) const {
  int64_t most = max_batch_tokens;
  if (position_bytes > 0) most = std::min(most, kMaxUnitBytes / position_bytes);
  if (max_paused_positions > 0) most = std::min(most, max_paused_positions);
  most = std::max<int64_t>(1, most);
  const int64_t rest = static_cast<int64_t>(variants.size() - first_variant);
  ScoreUnit unit;
  unit.first_sequence = first_sequence;
  unit.first_variant = first_variant;
  int64_t longest = 0;
  while (unit.first_sequence + unit.sequences < sequences()) {
    const int64_t next = std::max(longest, length(unit.first_sequence + unit.sequences));
    const bool fits = (unit.sequences + 1) * next * (1 + static_cast<int64_t>(variants.size())) <= most;
    if (unit.sequences > 0 && !fits && !in_one_pass) break;
    longest = next;
    ++unit.sequences;
  }
  const int64_t one_pass = unit.sequences * longest;
  const int64_t fitting = std::max<int64_t>(1, most / one_pass - 1);
  unit.variants = static_cast<size_t>(std::min(rest, fitting));
  unit.positions = one_pass * (1 + static_cast<int64_t>(unit.variants));
  return unit;
}

absl::StatusOr<ScorePlan> MakeScorePlan(ScoreRequest request, const Model& model, const CaptureLimits& limits,
                                        const std::vector<const Dataset*>& datasets) {
  ScorePlan plan;
  plan.model = &model;
  plan.max_batch_tokens = limits.max_batch_tokens;
  if (request.client_answers) {
    plan.max_paused_positions = limits.max_paused_tokens / kPausedShare;
    plan.answer_timeout = limits.answer_timeout;
  }
  if (!request.rows_only && !model.info().no_logits.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("model: \"", model.info().name, "\" ", model.info().no_logits));
  }
  RETURN_IF_ERROR(TakeSource(&request, limits, datasets, &plan));
  int64_t longest = 0;
  if (plan.dataset.dataset != nullptr) {
    longest = plan.dataset.length();
  } else {
    for (int64_t i = 0; i < plan.sequences(); ++i) longest = std::max(longest, plan.length(i));
  }
  RETURN_IF_ERROR(TakeOutputs(request, limits, &plan));
  RETURN_IF_ERROR(TakeVariants(request, longest, &plan));
  if (request.loss_recovered) AddZeroVariants(&plan);
  RETURN_IF_ERROR(CheckSizes(&plan, longest));
  return plan;
}

}  // namespace hookline
