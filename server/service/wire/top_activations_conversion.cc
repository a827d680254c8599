#include "server/service/wire/top_activations_conversion.h"

#include <utility>

#include "server/service/wire/request_conversion.h"

namespace hookline {
namespace {

LatentFinding FromProto(const v1::LatentActivations& latent) {
  LatentFinding out;
  out.latent = latent.latent();
  LatentFindings& found = out.findings;
  found.firings = latent.firings();
  found.values.assign(latent.values().begin(), latent.values().end());
  found.counts.assign(latent.counts().begin(), latent.counts().end());
  found.spacing = latent.value_spacing();
  for (const v1::LatentExample& example : latent.examples()) {
    LatentExample& made = found.examples.emplace_back();
    made.activation = example.activation();
    made.sequence = example.sequence();
    made.position = example.position();
    made.first_position = example.first_position();
    made.token_ids.assign(example.token_ids().begin(), example.token_ids().end());
    made.activations.assign(example.activations().begin(), example.activations().end());
  }
  return out;
}

v1::LatentActivations ToProto(const LatentFinding& finding) {
  const LatentFindings& found = finding.findings;
  v1::LatentActivations out;
  out.set_latent(static_cast<int32_t>(finding.latent));
  out.set_firings(found.firings);
  out.mutable_values()->Add(found.values.begin(), found.values.end());
  out.mutable_counts()->Add(found.counts.begin(), found.counts.end());
  out.set_value_spacing(found.spacing);
  for (const LatentExample& example : found.examples) {
    v1::LatentExample& made = *out.add_examples();
    made.set_activation(example.activation);
    made.set_sequence(example.sequence);
    made.set_position(example.position);
    made.set_first_position(example.first_position);
    made.mutable_token_ids()->Add(example.token_ids.begin(), example.token_ids.end());
    made.mutable_activations()->Add(example.activations.begin(), example.activations.end());
  }
  return out;
}

}  // namespace

v1::Dictionary ToProto(const Model& model, const AttachedDictionary& dictionary) {
  v1::Dictionary out;
  const DictionaryInfo& info = dictionary.info;
  out.set_name(info.name);
  out.set_model(model.info().name);
  out.set_hook_point(model.hook_points()[dictionary.hook_point].name);
  out.set_architecture(info.architecture);
  out.set_format(info.format);
  out.set_width(static_cast<int32_t>(info.width));
  out.set_latents(static_cast<int32_t>(info.latents));
  out.set_max_active(static_cast<int32_t>(info.max_active));
  out.set_fingerprint(info.fingerprint);
  for (int i = 0; i < kDictionaryPoints; ++i) {
    out.add_hook_points(model.hook_points()[dictionary.first_point + i].name);
  }
  out.set_output_hook_point(model.hook_points()[dictionary.output_point].name);
  if (info.head >= 0) out.set_head(info.head);
  return out;
}

TopActivationsRequest FromProto(const v1::TopActivationsRequest& request) {
  TopActivationsRequest out;
  out.dictionary = request.dictionary();
  out.dataset = FromProto(request.dataset());
  out.latents.assign(request.latents().begin(), request.latents().end());
  out.top = request.top();
  out.context = request.context();
  out.ignore_token_ids.assign(request.ignore_token_ids().begin(), request.ignore_token_ids().end());
  out.quantiles.assign(request.quantiles().begin(), request.quantiles().end());
  out.checkpoint_sequences = request.checkpoint_sequences();
  if (!request.has_resume()) return out;
  TopActivationsCheckpoint& resume = out.resume.emplace();
  resume.digest = request.resume().digest();
  resume.sequences = request.resume().sequences();
  resume.ignored_tokens = request.resume().ignored_tokens();
  for (const v1::LatentActivations& latent : request.resume().latents()) resume.latents.push_back(FromProto(latent));
  return out;
}

v1::TopActivationsResponse ToProto(const TopActivationsStarted& started) {
  const TopActivationsPlan& plan = *started.plan;
  v1::TopActivationsResponse message;
  v1::TopActivationsStarted& out = *message.mutable_started();
  *out.mutable_dictionary() = ToProto(*plan.model, plan.model->dictionaries()[static_cast<size_t>(plan.dictionary)]);
  out.set_sequences(plan.sequences());
  out.set_resumed_sequences(plan.resumed_sequences);
  out.set_sequence_length(static_cast<int32_t>(plan.dataset.length()));
  return message;
}

v1::TopActivationsResponse ToProto(const TopActivationsCheckpoint& checkpoint) {
  v1::TopActivationsResponse message;
  v1::TopActivationsCheckpoint& out = *message.mutable_checkpoint();
  out.set_digest(checkpoint.digest);
  out.set_sequences(checkpoint.sequences);
  out.set_ignored_tokens(checkpoint.ignored_tokens);
  for (const LatentFinding& finding : checkpoint.latents) *out.add_latents() = ToProto(finding);
  return message;
}

v1::TopActivationsResponse ToProto(const TopActivationsPlan& plan, const LatentFinding& finding) {
  v1::TopActivationsResponse message;
  v1::LatentActivations& out = *message.mutable_latent();
  out = ToProto(finding);
  if (finding.findings.firings == 0) return message;
  for (double share : plan.quantiles) {
    v1::LatentQuantile& quantile = *out.add_quantiles();
    quantile.set_share(share);
    quantile.set_value(finding.findings.Quantile(share));
  }
  return message;
}

v1::TopActivationsResponse ToProto(const TopActivationsEnded& ended) {
  v1::TopActivationsResponse message;
  v1::TopActivationsSummary& out = *message.mutable_summary();
  out.set_sequences(ended.found.sequences);
  out.set_tokens(ended.tokens);
  out.set_ignored_tokens(ended.found.ignored_tokens);
  out.mutable_timing()->set_total_seconds(absl::ToDoubleSeconds(ended.total_time));
  out.mutable_timing()->set_forward_seconds(absl::ToDoubleSeconds(ended.forward_time));
  out.mutable_timing()->set_queue_seconds(absl::ToDoubleSeconds(ended.queue_time));
  return message;
}

}  // namespace hookline
