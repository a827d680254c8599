#include "server/model/dictionary/dictionary.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace hookline {
namespace {

// Latents of this many bytes are in memory at a time where only what is decoded from them is wanted.
constexpr int64_t kLatentBytes = int64_t{64} << 20;
constexpr double kLayerNormEpsilon = 1e-5;  // SAELens's

}  // namespace

const char* NameOf(DictionaryPoint point) {
  switch (point) {
    case DictionaryPoint::kInput:
      return "hook_sae_input";
    case DictionaryPoint::kPreActivations:
      return "hook_sae_acts_pre";
    case DictionaryPoint::kActivations:
      return "hook_sae_acts_post";
    case DictionaryPoint::kReconstruction:
      return "hook_sae_recons";
    case DictionaryPoint::kError:
      return "hook_sae_error";
  }
  return "";
}

const char* DescriptionOf(DictionaryPoint point) {
  switch (point) {
    case DictionaryPoint::kInput:
      return "the rows that it encodes.";
    case DictionaryPoint::kPreActivations:
      return "its latents before the activation function.";
    case DictionaryPoint::kActivations:
      return "its latents.";
    case DictionaryPoint::kReconstruction:
      return "what it decodes, before a normalisation is undone.";
    case DictionaryPoint::kError:
      return "what its reconstruction leaves of the rows.";
  }
  return "";
}

Dictionary::Normalized Dictionary::Normalize(const at::Tensor& rows) const {
  Normalized made;
  at::Tensor x = rows.to(at::kFloat);
  const double width = static_cast<double>(info_.width);
  switch (config_.normalization) {
    case DictionaryConfig::Normalization::kNone:
      break;
    case DictionaryConfig::Normalization::kLayerNorm:
      made.shift = x.mean(at::IntArrayRef{1}, /*keepdim=*/true);
      x = x - made.shift;
      made.scale = x.square().sum(at::IntArrayRef{1}, /*keepdim=*/true).div(width - 1).sqrt();
      x = x / (made.scale + kLayerNormEpsilon);
      break;
    case DictionaryConfig::Normalization::kConstantNorm:
      made.scale = x.square().sum(at::IntArrayRef{1}, /*keepdim=*/true).sqrt() / std::sqrt(width);
      x = x / made.scale;
      break;
  }
  made.rows = config_.subtracts_decoder_bias ? x - weights_.decoder_bias : x;
  return made;
}

at::Tensor Dictionary::PreActivations(const at::Tensor& normalized) const {
  if (config_.activation != DictionaryConfig::Activation::kGated) {
    return at::addmm(weights_.encoder_bias, normalized, weights_.encoder);
  }
  return at::mm(normalized, weights_.encoder).mul_(weights_.magnitude).add_(weights_.encoder_bias);
}

at::Tensor Dictionary::Activations(const at::Tensor& normalized, const at::Tensor& pre) const {
  switch (config_.activation) {
    case DictionaryConfig::Activation::kRelu:
      return at::relu(pre);
    case DictionaryConfig::Activation::kJumpRelu:
      return at::relu(pre) * pre.gt(weights_.threshold);
    case DictionaryConfig::Activation::kGated:
      return at::relu(pre) * at::addmm(weights_.gate_bias, normalized, weights_.encoder).gt(0);
    case DictionaryConfig::Activation::kTopK: {
      const at::Tensor scaled =
          config_.scales_by_decoder_norm ? pre * weights_.decoder.norm(2, at::IntArrayRef{1}) : pre;
      at::Tensor values, latents;
      std::tie(values, latents) = at::topk(scaled, config_.k, 1, /*largest=*/true, /*sorted=*/false);
      return at::zeros_like(scaled).scatter_(1, latents, at::relu(values));
    }
  }
  return pre;
}

at::Tensor Dictionary::Decode(const at::Tensor& latents) const {
  const at::Tensor scaled =
      config_.scales_by_decoder_norm ? latents / weights_.decoder.norm(2, at::IntArrayRef{1}) : latents;
  return at::addmm(weights_.decoder_bias, scaled, weights_.decoder);
}

at::Tensor Dictionary::Restore(const at::Tensor& decoded, const Normalized& normalized) {
  at::Tensor rows = decoded;
  if (normalized.scale.defined()) rows = rows * normalized.scale;
  if (normalized.shift.defined()) rows = rows + normalized.shift;
  return rows;
}

at::Tensor Dictionary::Compute(DictionaryPoint point, const at::Tensor& rows) const {
  const auto compute = [&]() -> at::Tensor {
    if (point == DictionaryPoint::kInput) return rows;
    if (point == DictionaryPoint::kError) {
      at::Tensor active;
      return rows.to(at::kFloat) - Reconstruct(rows, /*edits=*/{}, /*keeps_error=*/false, &active);
    }
    const Normalized normalized = Normalize(rows);
    const at::Tensor pre = PreActivations(normalized.rows);
    if (point == DictionaryPoint::kPreActivations) return pre;
    const at::Tensor latents = Activations(normalized.rows, pre);
    return point == DictionaryPoint::kActivations ? latents : Decode(latents);
  };
  return compute().to(rows.scalar_type());
}

at::Tensor Dictionary::Reconstruct(const at::Tensor& rows, const std::vector<LatentEdit>& edits, bool keeps_error,
                                   at::Tensor* active) const {
  const int64_t count = rows.size(0);
  const int64_t piece = std::max<int64_t>(1, kLatentBytes / (info_.latents * int64_t{sizeof(float)}));
  std::vector<at::Tensor> parts, counts;
  for (int64_t first = 0; first < count; first += piece) {
    const at::Tensor x = rows.narrow(0, first, std::min(piece, count - first));
    const Normalized normalized = Normalize(x);
    at::Tensor latents = Activations(normalized.rows, PreActivations(normalized.rows));
    at::Tensor error;
    if (keeps_error) error = x.to(at::kFloat) - Restore(Decode(latents), normalized);
    for (const LatentEdit& edit : edits) {
      at::Tensor one = latents.select(1, edit.latent);
      if (edit.kind == LatentEdit::Kind::kClamp) {
        one.fill_(edit.value);
      } else {
        one.mul_(edit.value);
      }
    }
    counts.push_back(latents.ne(0).sum(1));
    at::Tensor made = Restore(Decode(latents), normalized);
    parts.push_back(keeps_error ? made + error : made);
  }
  *active = at::cat(counts, 0);
  return at::cat(parts, 0);
}

}  // namespace hookline
