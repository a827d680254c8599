#include "server/model/dictionary/dictionary.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace hookline {
namespace {

// Limits the latents that are in memory at a time where only the values decoded from them are wanted.
constexpr int64_t kLatentBytes = int64_t{64} << 20;
constexpr double kLayerNormEpsilon = 1e-5;  // SAELens uses the same

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
      return "the rows that the dictionary encodes.";
    case DictionaryPoint::kPreActivations:
      return "the latents before the activation function.";
    case DictionaryPoint::kActivations:
      return "the latents.";
    case DictionaryPoint::kReconstruction:
      return "the decoded rows, before a normalisation is undone.";
    case DictionaryPoint::kError:
      return "the rows minus their reconstruction.";
  }
  return "";
}

at::Tensor Dictionary::PartOf(const at::Tensor& rows) const {
  return info_.head < 0 ? rows : rows.narrow(-1, info_.head * info_.width, info_.width);
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

at::Tensor Dictionary::Restore(const at::Tensor& decoded, const at::Tensor& rows, const Normalized& normalized) const {
  if (weights_.skip.defined()) return decoded + at::mm(rows.to(at::kFloat), weights_.skip.t());
  // A transcoder writes rows whose scale differs from that of the rows that it reads.
  if (config_.is_transcoder) return decoded;
  at::Tensor restored = decoded;
  if (normalized.scale.defined()) restored = restored * normalized.scale;
  if (normalized.shift.defined()) restored = restored + normalized.shift;
  return restored;
}

void Dictionary::ComputePiece(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, Visit visit) const {
  const DictionaryPoint last = points.back();
  at::Tensor value = rows;
  Normalized normalized;
  for (const DictionaryPoint point : {DictionaryPoint::kInput, DictionaryPoint::kPreActivations,
                                      DictionaryPoint::kActivations, DictionaryPoint::kReconstruction}) {
    if (point > last) return;
    if (point == DictionaryPoint::kPreActivations) {
      normalized = Normalize(rows);
      value = PreActivations(normalized.rows);
    } else if (point == DictionaryPoint::kActivations) {
      value = Activations(normalized.rows, value);
    } else if (point == DictionaryPoint::kReconstruction) {
      value = Decode(value);
    }
    if (std::find(points.begin(), points.end(), point) != points.end()) visit(point, value);
  }
}

void Dictionary::Compute(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, at::ScalarType dtype,
                         Visit visit) const {
  const int64_t count = rows.size(0), piece = RowsAtATime();
  if (count <= piece) {
    return ComputePiece(points, rows,
                        [&](DictionaryPoint point, const at::Tensor& values) { visit(point, values.to(dtype)); });
  }
  std::vector<at::Tensor> made(kDictionaryPoints);
  for (int64_t first = 0; first < count; first += piece) {
    const int64_t some = std::min(piece, count - first);
    ComputePiece(points, rows.narrow(0, first, some), [&](DictionaryPoint point, const at::Tensor& values) {
      at::Tensor& whole = made[static_cast<size_t>(point)];
      if (!whole.defined()) whole = at::empty({count, values.size(1)}, values.options().dtype(dtype));
      whole.narrow(0, first, some).copy_(values);
    });
  }
  for (DictionaryPoint point : points) visit(point, made[static_cast<size_t>(point)]);
}

int64_t Dictionary::RowsAtATime() const {
  return std::max<int64_t>(1, kLatentBytes / (info_.latents * int64_t{sizeof(float)}));
}

Dictionary Dictionary::Only(const at::Tensor& latents) const {
  DictionaryInfo info = info_;
  info.latents = latents.size(0);
  DictionaryWeights weights = weights_;
  weights.encoder = weights.encoder.index_select(1, latents);
  weights.decoder = weights.decoder.index_select(0, latents);
  for (at::Tensor* one : {&weights.encoder_bias, &weights.threshold, &weights.gate_bias, &weights.magnitude}) {
    if (one->defined()) *one = one->index_select(0, latents);
  }
  return Dictionary(std::move(info), config_, std::move(weights));
}

at::Tensor Dictionary::Latents(const at::Tensor& rows, const at::Tensor& latents) const {
  // The activation function chooses the k largest of all latents.
  if (config_.activation != DictionaryConfig::Activation::kTopK && latents.size(0) < info_.latents) {
    const Dictionary only = Only(latents);
    return only.Latents(rows, at::arange(latents.size(0), latents.options()));
  }
  const int64_t piece = RowsAtATime();
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < rows.size(0); first += piece) {
    const at::Tensor some = rows.narrow(0, first, std::min(piece, rows.size(0) - first));
    ComputePiece({DictionaryPoint::kActivations}, some, [&](DictionaryPoint, const at::Tensor& values) {
      parts.push_back(values.index_select(1, latents).to(rows.scalar_type()).to(at::kFloat));
    });
  }
  return at::cat(parts, 0);
}

at::Tensor Dictionary::Error(const at::Tensor& rows, const at::Tensor& outputs) const {
  at::Tensor active;
  const at::Tensor made = Reconstruct(rows, /*edits=*/{}, /*outputs=*/{}, &active);
  return (outputs.to(at::kFloat) - made).to(outputs.scalar_type());
}

at::Tensor Dictionary::Reconstruct(const at::Tensor& rows, const std::vector<LatentEdit>& edits,
                                   const at::Tensor& outputs, at::Tensor* active) const {
  const int64_t count = rows.size(0);
  const int64_t piece = RowsAtATime();
  std::vector<at::Tensor> parts, counts;
  for (int64_t first = 0; first < count; first += piece) {
    const at::Tensor x = rows.narrow(0, first, std::min(piece, count - first));
    const Normalized normalized = Normalize(x);
    at::Tensor latents = Activations(normalized.rows, PreActivations(normalized.rows));
    at::Tensor error;
    if (outputs.defined()) {
      error = outputs.narrow(0, first, x.size(0)).to(at::kFloat) - Restore(Decode(latents), x, normalized);
    }
    for (const LatentEdit& edit : edits) {
      at::Tensor one = latents.select(1, edit.latent);
      if (edit.kind == LatentEdit::Kind::kClamp) {
        one.fill_(edit.value);
      } else {
        one.mul_(edit.value);
      }
    }
    counts.push_back(latents.ne(0).sum(1));
    at::Tensor made = Restore(Decode(latents), x, normalized);
    parts.push_back(error.defined() ? made + error : made);
  }
  *active = at::cat(counts, 0);
  return at::cat(parts, 0);
}

}  // namespace hookline
