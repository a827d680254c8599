#include "server/model/evaluation/apply.h"

#include <cstring>

#include "server/model/dictionary/dictionary.h"

namespace hookline {
namespace {

using Operation = Intervention::Operation;

at::Tensor FromHost(const void* values, int64_t count, at::ScalarType type, at::Device device) {
  at::Tensor tensor = at::empty({count}, type);
  if (count > 0) std::memcpy(tensor.data_ptr(), values, static_cast<size_t>(count) * c10::elementSize(type));
  return tensor.to(device);
}

const Dictionary& DictionaryOf(const Intervention& intervention, const Model& model) {
  return *model.dictionaries()[static_cast<size_t>(intervention.dictionary)].dictionary;
}

// (B, T), true where the intervention applies.
at::Tensor Where(const Intervention& intervention, const BatchTokens& tokens) {
  at::Tensor where = at::ones_like(tokens.valid);
  const at::Device device = tokens.ids.device();
  if (!intervention.positions.empty()) {
    const int64_t positions = tokens.ids.size(1);
    at::Tensor chosen = at::zeros({positions}, where.options());
    for (int64_t position : intervention.positions) {
      if (position < positions) chosen.narrow(0, position, 1).fill_(true);
    }
    where = where.logical_and(chosen);
  }
  for (uint32_t id : intervention.ignored_token_ids) where = where.logical_and(tokens.ids.ne(static_cast<int64_t>(id)));
  return where.to(device);
}

// The rows of `vector` at their positions, (1, T, width), or one row for all positions.
at::Tensor RowsToSet(const Intervention& intervention, const at::Tensor& vector, int64_t positions, int64_t width) {
  const at::Tensor rows = vector.view({-1, width});
  if (rows.size(0) == 1) return rows.unsqueeze(0);
  at::Tensor placed = at::zeros({positions, width}, rows.options());
  for (size_t i = 0; i < intervention.positions.size(); ++i) {
    const int64_t position = intervention.positions[i];
    if (position < positions) placed.select(0, position).copy_(rows[static_cast<int64_t>(i)]);
  }
  return placed.unsqueeze(0);
}

// Returns the replacement of x (B, T, width), in float32. If a dictionary computes it, sets `active` (B * T) to the
// number of its latents that are not zero.
at::Tensor Replacement(const Intervention& intervention, const Model& model, const BatchTokens& tokens,
                       const at::Tensor& x, const GivenRows& given, at::Tensor* active) {
  const int64_t width = x.size(2);
  const at::Tensor vector =
      FromHost(intervention.vector.data(), static_cast<int64_t>(intervention.vector.size()), at::kFloat, x.device());
  switch (intervention.operation) {
    case Operation::kZero:
      return at::zeros_like(x);
    case Operation::kMean:
      return vector.expand_as(x);
    case Operation::kBatchMean: {
      const at::Tensor valid = tokens.valid.unsqueeze(2).to(at::kDouble);
      return (x.to(at::kDouble) * valid).sum(at::IntArrayRef{0, 1}).div(valid.sum()).to(at::kFloat).expand_as(x);
    }
    case Operation::kAdd:
      return x + vector * intervention.factor;
    case Operation::kScale:
      return x * intervention.factor;
    case Operation::kProjectOut:
      return x - at::matmul(x, vector).div(vector.dot(vector)).unsqueeze(2) * vector;
    case Operation::kSet:
      return RowsToSet(intervention, vector, x.size(1), width).expand_as(x);
    case Operation::kDictionary:
    case Operation::kLatents: {
      const at::Tensor rows = x.reshape({-1, width});
      const at::Tensor from = given.input.defined() ? given.input.reshape({-1, given.input.size(2)}) : rows;
      return DictionaryOf(intervention, model)
          .Reconstruct(from, intervention.edits, intervention.keeps_error ? rows : at::Tensor(), active)
          .view(x.sizes());
    }
    case Operation::kClient:
      return given.rows;
  }
  return x;
}

// Adds the replacement of x by y, both (B, T, width), to `replaced` where `counted` (B, T). `active`: see Replacement.
void Count(const at::Tensor& x, const at::Tensor& y, const at::Tensor& counted, const at::Tensor& active,
           ReplacedRows* replaced) {
  const at::Tensor index = counted.reshape({-1}).nonzero().squeeze(1);
  const at::Tensor from = x.reshape({-1, x.size(2)}).index_select(0, index).to(at::kDouble);
  const at::Tensor to = y.reshape({-1, y.size(2)}).index_select(0, index).to(at::kDouble);
  ReplacedRows counts;
  counts.rows = index.size(0);
  if (counts.rows == 0) return;
  counts.squared_error = (from - to).square().sum().item<double>();
  counts.squares = from.square().sum().item<double>();
  const at::Tensor sum = from.sum(0).cpu();
  counts.sum.assign(sum.data_ptr<double>(), sum.data_ptr<double>() + sum.size(0));
  // The same formula as torch.nn.functional.cosine_similarity.
  constexpr double kEpsilon = 1e-8;
  const at::Tensor lengths = from.norm(2, 1).clamp_min(kEpsilon) * to.norm(2, 1).clamp_min(kEpsilon);
  counts.cosine_similarity = ((from * to).sum(1) / lengths).sum().item<double>();
  if (active.defined()) counts.active_latents = active.index_select(0, index).sum().item<double>();
  replaced->Add(counts);
}

}  // namespace

at::Tensor PartOf(const Intervention& intervention, const Model& model, const at::Tensor& x) {
  if (intervention.head < 0) return x;
  const int64_t width = x.size(2) / model.hook_points()[intervention.hook_point].heads;
  return x.narrow(2, intervention.head * width, width);
}

void Apply(const Intervention& intervention, const Model& model, const BatchTokens& tokens, at::Tensor x,
           const GivenRows& given, ReplacedRows* replaced) {
  const bool reads_what_it_replaces = !given.input.defined();
  if (intervention.dictionary >= 0 && reads_what_it_replaces) x = DictionaryOf(intervention, model).PartOf(x);
  x = PartOf(intervention, model, x);
  at::Tensor where = Where(intervention, tokens);
  if (given.mask.defined()) where = where.logical_and(given.mask);
  const at::Tensor before = x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor active;
  const at::Tensor replacement = Replacement(intervention, model, tokens, before, given, &active);
  // The pass goes on in the model's dtype.
  const at::Tensor after = at::where(where.unsqueeze(2), replacement, before).to(x.scalar_type());
  Count(before, after.to(at::kFloat), where.logical_and(tokens.valid), active, replaced);
  x.copy_(after);
}

}  // namespace hookline
