#include "server/service/wire/score_conversion.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "server/base/status.h"
#include "server/capture/token_batch.h"
#include "server/service/wire/request_conversion.h"

namespace hookline {
namespace {

// This holds 64 variants with vectors of 16384 values several times over. Parsed, small nested messages take up to
// thirty times their bytes.
constexpr size_t kMaxRequestBytes = size_t{16} << 20;
// Messages of this size travel fastest.
constexpr int64_t kRowsBytes = int64_t{1} << 20;

template <typename Out, typename Values>
std::vector<Out> ToVector(const Values& values) {
  return std::vector<Out>(values.begin(), values.end());
}

EditLatents FromProto(const v1::EditLatents& latents) {
  EditLatents out;
  out.dictionary = latents.dictionary();
  out.keep_error = latents.keep_error();
  for (const v1::LatentEdit& edit : latents.edits()) {
    LatentEditRequest& made = out.edits.emplace_back();
    made.latent = edit.latent();
    if (edit.has_clamp()) made.operation = edit.clamp();
    if (edit.has_scale()) made.operation = ScaleRows{edit.scale()};
    if (edit.has_ablate()) made.operation = ZeroRows{};
  }
  return out;
}

InterventionRequest FromProto(const v1::Intervention& intervention) {
  InterventionRequest out;
  out.hook_point = intervention.hook_point();
  switch (intervention.operation_case()) {
    case v1::Intervention::kZero:
      out.operation = ZeroRows{};
      break;
    case v1::Intervention::kMean:
      out.operation = MeanRows{ToVector<float>(intervention.mean().vector())};
      break;
    case v1::Intervention::kAdd:
      out.operation = AddVector{ToVector<float>(intervention.add().vector()),
                                intervention.add().has_scale() ? intervention.add().scale() : 1};
      break;
    case v1::Intervention::kScale:
      out.operation = ScaleRows{intervention.scale().factor()};
      break;
    case v1::Intervention::kProjectOut:
      out.operation = ProjectOut{ToVector<float>(intervention.project_out().direction())};
      break;
    case v1::Intervention::kSet: {
      SetRows set;
      for (const v1::RowValues& row : intervention.set().rows()) set.rows.push_back(ToVector<float>(row.values()));
      out.operation = std::move(set);
      break;
    }
    case v1::Intervention::kDictionary:
      out.operation = DictionaryRows{intervention.dictionary()};
      break;
    case v1::Intervention::kLatents:
      out.operation = FromProto(intervention.latents());
      break;
    case v1::Intervention::kClient:
      out.operation = ClientRows{};
      break;
    case v1::Intervention::OPERATION_NOT_SET:
      break;
  }
  out.positions = ToVector<int64_t>(intervention.positions());
  out.ignore_token_ids = ToVector<uint32_t>(intervention.ignore_token_ids());
  if (intervention.has_head()) out.head = intervention.head();
  return out;
}

absl::StatusOr<TokenBatch> FromProto(const v1::TokenBatch& tokens, const TokenLimits& limits) {
  int64_t count = 0;
  for (const v1::TokenSequence& sequence : tokens.sequences()) count += sequence.ids_size();
  RETURN_IF_ERROR(CheckTokenCounts(tokens.sequences_size(), count, "tokens", limits));
  TokenBatch out;
  for (const v1::TokenSequence& sequence : tokens.sequences()) {
    for (uint32_t id : sequence.ids()) out.Append(id);
    out.EndSequence();
  }
  return out;
}

absl::StatusOr<ScoreRequest> FromProto(const v1::ScoreRequest& request, const TokenLimits& limits) {
  ScoreRequest out;
  out.model = request.model();
  if (request.has_tokens()) {
    ASSIGN_OR_RETURN(out.source, FromProto(request.tokens(), limits));
  } else if (request.has_dataset()) {
    out.source = hookline::FromProto(request.dataset());
  } else if (request.has_text()) {
    TextSource text;
    text.texts = {request.text().texts().begin(), request.text().texts().end()};
    if (request.text().has_add_special_tokens()) text.add_special_tokens = request.text().add_special_tokens();
    ASSIGN_OR_RETURN(text.long_texts, hookline::FromProto(request.text().long_texts()));
    out.source = std::move(text);
  }
  for (const v1::ScoreVariant& variant : request.variants()) {
    VariantRequest& made = out.variants.emplace_back();
    made.name = variant.name();
    for (const v1::Intervention& one : variant.interventions()) made.interventions.push_back(FromProto(one));
  }
  const v1::ScoreOutputs& outputs = request.outputs();
  out.per_token_loss = outputs.per_token_loss();
  out.kl = outputs.kl();
  out.top_logits = outputs.top_logits();
  out.log_probability_token_ids = ToVector<uint32_t>(outputs.log_probability_token_ids());
  out.hook_points = ToVector<std::string>(outputs.hook_points());
  out.rows_only = outputs.rows_only();
  out.loss_recovered = outputs.loss_recovered();
  return out;
}

// Parses a message. RESOURCE_EXHAUSTED: it is larger than kMaxRequestBytes; INVALID_ARGUMENT: it is not a Message.
template <typename Message>
absl::Status Parse(grpc::ByteBuffer* bytes, Message* message) {
  if (bytes->Length() > kMaxRequestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", bytes->Length(), " bytes, more than the ",
                                                     kMaxRequestBytes, " of a ", Message::descriptor()->name(),
                                                     "; send several requests"));
  }
  grpc::ProtoBufferReader reader(bytes);
  if (message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the request is not a ", Message::descriptor()->name(), " message"));
}

absl::StatusOr<RowsAnswer> FromProto(const v1::AnsweredRows& answer) {
  RowsAnswer out;
  out.sequence = answer.sequence();
  out.variant = answer.variant();
  out.hook_point = answer.hook_point();
  out.first_position = answer.first_position();
  out.rows = answer.rows();
  out.mask.assign(answer.mask().begin(), answer.mask().end());
  const std::string& data = answer.data();
  if (data.size() % sizeof(float) != 0) {
    return InvalidField("answer.data", absl::StrCat("has ", data.size(), " bytes, but a value has ", sizeof(float)));
  }
  out.values.resize(data.size() / sizeof(float));
  std::memcpy(out.values.data(), data.data(), data.size());
  return out;
}

std::string VariantName(const ScorePlan& plan, size_t variant) {
  return variant == 0 ? "" : plan.variants[variant - 1].name;
}

}  // namespace

absl::StatusOr<ScoreRequest> ParseScoreRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  v1::ScoreRequest request;
  RETURN_IF_ERROR(Parse(&message, &request));
  return FromProto(request, limits);
}

absl::StatusOr<SubstituteMessage> ParseSubstituteRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  v1::SubstituteRequest request;
  RETURN_IF_ERROR(Parse(&message, &request));
  if (request.has_request()) {
    ASSIGN_OR_RETURN(ScoreRequest score, FromProto(request.request(), limits));
    score.client_answers = true;
    return score;
  }
  if (!request.has_answer()) return InvalidField("kind", "is missing; give one of request, answer");
  return FromProto(request.answer());
}

v1::ScoreResponse ToProto(const ScoreStarted& started) {
  const ScorePlan& plan = *started.plan;
  v1::ScoreResponse message;
  v1::ScoreStarted& out = *message.mutable_started();
  out.set_model(plan.model->info().name);
  out.set_fingerprint(plan.model->info().fingerprint);
  out.set_sequences(plan.sequences());
  for (size_t v = 0; v <= plan.sent_variants; ++v) out.add_variants(VariantName(plan, v));
  for (size_t h = 0; h < plan.hook_points.size(); ++h) {
    v1::ScoreHookPoint& point = *out.add_hook_points();
    point.set_hook_point(plan.hook_points[h]);
    point.set_width(static_cast<int32_t>(plan.model->hook_points()[plan.outputs.hook_points[h]].width));
  }
  return message;
}

v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoredSequence& scored) {
  v1::ScoreResponse message;
  v1::Score& out = *message.mutable_score();
  out.set_sequence(scored.sequence);
  out.set_variant(VariantName(plan, scored.variant));
  const SequenceScore& score = scored.score;
  if (!plan.outputs.rows_only && scored.tokens > 1) {
    out.set_mean_loss(score.loss_sum / static_cast<double>(scored.tokens - 1));
  }
  out.mutable_token_loss()->Add(score.token_loss.begin(), score.token_loss.end());
  out.mutable_token_ids()->Add(scored.token_ids.begin(), scored.token_ids.end());
  out.mutable_kl()->Add(score.kl.begin(), score.kl.end());
  for (const TopLogits& top : score.top_logits) {
    v1::TopLogits& position = *out.add_top_logits();
    position.mutable_ids()->Add(top.ids.begin(), top.ids.end());
    position.mutable_logits()->Add(top.logits.begin(), top.logits.end());
    position.mutable_log_probabilities()->Add(top.log_probabilities.begin(), top.log_probabilities.end());
  }
  const size_t ids = plan.outputs.probability_of.size();
  for (size_t first = 0; first < score.log_probabilities.size(); first += ids) {
    const float* const begin = &score.log_probabilities[first];
    out.add_log_probabilities()->mutable_values()->Add(begin, begin + ids);
  }
  return message;
}

v1::ScoreResponse RowsToProto(const ScorePlan& plan, const ScoredSequence& scored, size_t hook_point,
                              int64_t first_position) {
  v1::ScoreResponse message;
  v1::ScoreRows& out = *message.mutable_rows();
  const int64_t width = plan.model->hook_points()[plan.outputs.hook_points[hook_point]].width;
  const int64_t fitting = std::max<int64_t>(1, kRowsBytes / (width * int64_t{sizeof(float)}));
  const int64_t rows = std::min(fitting, scored.tokens - first_position);
  out.set_sequence(scored.sequence);
  out.set_variant(VariantName(plan, scored.variant));
  out.set_hook_point(plan.hook_points[hook_point]);
  out.set_first_position(static_cast<int32_t>(first_position));
  out.set_rows(static_cast<int32_t>(rows));
  out.set_width(static_cast<int32_t>(width));
  const float* const begin = scored.score.rows[hook_point].data() + first_position * width;
  out.mutable_values()->Add(begin, begin + rows * width);
  return message;
}

v1::ScoreResponse AskedToProto(const ScorePlan& plan, const RowsAsked& asked, int64_t first_position) {
  v1::ScoreResponse message;
  v1::AskedRows& out = *message.mutable_asked();
  const int64_t fitting = std::max<int64_t>(1, kRowsBytes / (asked.width * int64_t{sizeof(float)}));
  const int64_t left = static_cast<int64_t>(asked.token_ids.size()) - first_position;
  const int64_t rows = std::min(fitting, left);
  out.set_sequence(asked.sequence);
  out.set_variant(plan.variants[asked.variant].name);
  out.set_hook_point(plan.replaced_names[asked.variant][asked.intervention]);
  out.set_first_position(static_cast<int32_t>(first_position));
  out.set_rows(static_cast<int32_t>(rows));
  out.set_width(static_cast<int32_t>(asked.width));
  const uint32_t* const ids = asked.token_ids.data() + first_position;
  out.mutable_token_ids()->Add(ids, ids + rows);
  out.set_last(asked.last && rows == left);
  const float* const values = asked.rows.data() + first_position * asked.width;
  out.set_data(values, static_cast<size_t>(rows * asked.width) * sizeof(float));
  return message;
}

v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoreEnded& ended) {
  v1::ScoreResponse message;
  v1::ScoreSummary& out = *message.mutable_summary();
  for (size_t v = 0; v <= plan.sent_variants; ++v) {
    const VariantTotals& totals = ended.variants[v];
    v1::VariantSummary& variant = *out.add_variants();
    variant.set_name(VariantName(plan, v));
    if (totals.predictions > 0) variant.set_mean_loss(totals.MeanLoss());
    if (plan.outputs.kl && v > 0 && totals.tokens > 0) {
      variant.set_mean_kl(totals.kl_sum / static_cast<double>(totals.tokens));
    }
    variant.set_tokens(totals.predictions);
    if (v == 0) continue;
    if (const auto recovered = ended.LossRecovered(plan, v - 1); recovered.has_value()) {
      variant.set_loss_recovered(*recovered);
    }
    for (size_t i = 0; i < totals.replaced.size(); ++i) {
      const ReplacedRows& counts = totals.replaced[i];
      v1::ReplacedRows& replaced = *variant.add_replaced();
      replaced.set_hook_point(plan.replaced_names[v - 1][i]);
      replaced.set_rows(counts.rows);
      if (counts.rows == 0) continue;
      if (const double explained = counts.ExplainedVariance(); !std::isnan(explained)) {
        replaced.set_explained_variance(explained);
      }
      const double rows = static_cast<double>(counts.rows);
      replaced.set_mean_squared_error(counts.squared_error / (rows * static_cast<double>(counts.sum.size())));
      replaced.set_cosine_similarity(counts.cosine_similarity / rows);
      if (plan.variants[v - 1].interventions[i].dictionary >= 0) replaced.set_l0(counts.active_latents / rows);
    }
  }
  out.set_sequences(ended.sequences);
  out.set_tokens(ended.tokens);
  out.mutable_timing()->set_total_seconds(absl::ToDoubleSeconds(ended.total_time));
  out.mutable_timing()->set_forward_seconds(absl::ToDoubleSeconds(ended.forward_time));
  out.mutable_timing()->set_queue_seconds(absl::ToDoubleSeconds(ended.queue_time));
  out.mutable_timing()->set_client_seconds(absl::ToDoubleSeconds(ended.client_time));
  return message;
}

}  // namespace hookline
