#include "server/model/attention/softmax_attention.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model/layers.h"

namespace hookline {
namespace {

// Puts query, key and value side by side and replaces them by views, so that one product computes all three. On a CPU
// three products cost no more than one, and the code that follows prefers rows that lie close together.
LinearWeights Join(SoftmaxAttentionWeights* weights) {
  const std::array<LinearWeights*, 3> parts = {&weights->query, &weights->key, &weights->value};
  std::vector<at::Tensor> columns, biases;
  for (const LinearWeights* part : parts) {
    if (!part->weight.defined() || part->weight.is_cpu()) return {};
    columns.push_back(part->weight.t());
    if (part->bias.defined()) biases.push_back(part->bias);
  }
  if (!biases.empty() && biases.size() != parts.size()) return {};
  LinearWeights joined;
  joined.weight = at::cat(columns).t();
  if (!biases.empty()) joined.bias = at::cat(biases);
  int64_t begin = 0;
  for (LinearWeights* part : parts) {
    const int64_t outputs = part->weight.size(1);
    part->weight = joined.weight.narrow(1, begin, outputs);
    if (joined.bias.defined()) part->bias = joined.bias.narrow(0, begin, outputs);
    begin += outputs;
  }
  return joined;
}

}  // namespace

SoftmaxAttention::SoftmaxAttention(const SoftmaxAttentionConfig& config, int layer, SoftmaxAttentionWeights weights,
                                   HookPointList& hook_points)
    : config_(config),
      layer_(layer),
      // Norms need contiguous rows, and the copies would take as many launches as joining saves.
      joined_(config.query_key_norm.norm.kind == NormConfig::Kind::kNone ? Join(&weights) : LinearWeights()),
      weights_(std::move(weights)),
      query_norm_(config.query_key_norm.norm, weights_.query_norm, weights_.out.weight.scalar_type()),
      key_norm_(config.query_key_norm.norm, weights_.key_norm, weights_.out.weight.scalar_type()),
      value_norm_(config.value_norm, {}, weights_.out.weight.scalar_type()) {
  const int64_t queries = config.heads * config.head_width, keys = config.key_value_heads * config.head_width;
  const bool normed = config.query_key_norm.norm.kind != NormConfig::Kind::kNone;
  const bool rotated = config.rotary >= 0, projects_keys = config.keys_from < 0;
  const char* raw = normed ? ", before norm and rotation." : rotated ? ", before rotation." : ".";
  const char* turned =
      normed ? " as attention uses it, after norm and rotation." : " as attention uses it, after rotation.";
  query_hook_ = hook_points.AddHeads("attn.hook_q", config.heads, queries, absl::StrCat("The query projection", raw));
  if (projects_keys) {
    key_hook_ =
        hook_points.AddHeads("attn.hook_k", config.key_value_heads, keys, absl::StrCat("The key projection", raw));
    value_hook_ = hook_points.AddHeads(
        "attn.hook_v", config.key_value_heads, keys,
        config.value_embedding_factor != 0
            ? "The values as attention uses them, with the gated value embedding where the block has one."
        : config.value_norm.kind != NormConfig::Kind::kNone ? "The value projection, before its norm."
        : config.clamp != 0                                 ? "The value projection, before it is clamped."
                                                            : "The value projection.");
  }
  if (rotated)
    rotated_query_hook_ =
        hook_points.AddHeads("attn.hook_rot_q", config.heads, queries, absl::StrCat("The query", turned));
  if (rotated && projects_keys) {
    rotated_key_hook_ =
        hook_points.AddHeads("attn.hook_rot_k", config.key_value_heads, keys, absl::StrCat("The key", turned));
  }
  z_hook_ =
      hook_points.AddHeads("attn.hook_z", config.heads, queries,
                           config.gated ? "Attention's result per head times its gate, before the output projection."
                                        : "Attention's result per head, before the output projection.");
}

bool SoftmaxAttention::Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const {
  Projected projected;
  if (Project(h, pass, &projected)) return true;
  at::Tensor q, k, v;
  if (projected.query_key.defined()) {
    const at::Tensor both = Prepared(projected.query_key, config_.heads + config_.key_value_heads, query_norm_, pass);
    q = both.narrow(2, 0, config_.heads);
    k = both.narrow(2, config_.heads, config_.key_value_heads);
  } else if (projected.q.defined()) {
    q = Prepared(projected.q, config_.heads, query_norm_, pass);
  }
  if (q.defined() && pass.taps(rotated_query_hook_, q)) return true;
  if (config_.keys_from < 0) {
    if (!k.defined()) k = Prepared(projected.k, config_.key_value_heads, key_norm_, pass);
    if (pass.taps(rotated_key_hook_, k)) return true;
    v = PreparedValues(projected.v, pass);
    if (config_.shares_keys) pass.shared[layer_] = {k, v};
  } else {
    k = pass.shared[config_.keys_from].keys;
    v = pass.shared[config_.keys_from].values;
  }
  at::Tensor z =
      Attend(q, k, v, {config_.scale, config_.soft_cap, config_.reach, weights_.sinks}, pass.masks);  // (B, T, H E)
  if (projected.gate.defined()) z = z.view(projected.gate.sizes()) * at::sigmoid(projected.gate);
  z = z.view({-1, config_.heads * config_.head_width});
  if (pass.taps(z_hook_, z)) return true;
  *out = Linear(z, weights_.out);
  return false;
}

// If the pass ends before attention, only what is tapped is projected.
bool SoftmaxAttention::Project(const at::Tensor& h, ForwardPass& pass, Projected* projected) const {
  const int64_t rows = h.size(0), heads = config_.heads, width = config_.head_width;
  at::Tensor all;
  const bool joined = joined_.weight.defined() && pass.taps.Reach(z_hook_);
  // If the joined rows stay unchanged, one rotation turns queries and keys together. A tap that replaces either
  // separates them.
  bool as_brought = joined && config_.rotary >= 0 && !config_.gated;
  const auto project = [&](const LinearWeights& own, int64_t part) -> at::Tensor {
    if (joined) {
      if (!all.defined()) all = Linear(h, joined_);
      const int64_t queries = weights_.query.weight.size(1), keys = weights_.key.weight.size(1);
      const std::array<int64_t, 3> begin = {0, queries, queries + keys};
      return all.narrow(1, begin[static_cast<size_t>(part)], own.weight.size(1));
    }
    if (!weights_.query_key_value.weight.defined()) return Linear(h, own);
    if (!all.defined()) all = Linear(h, weights_.query_key_value).view({rows, heads, 3, width});
    return all.select(2, part).reshape({rows, heads * width});
  };
  Taps& taps = pass.taps;
  if (taps.Need({query_hook_, rotated_query_hook_}, z_hook_)) {
    projected->q = project(weights_.query, 0);  // (B * T, H E)
    if (config_.gated) {
      const at::Tensor both = projected->q.view({rows, heads, 2 * width});
      projected->q = both.narrow(2, 0, width).reshape({rows, heads * width});
      projected->gate = both.narrow(2, width, width);
    }
    const at::Tensor brought = projected->q;
    if (taps(query_hook_, projected->q)) return true;
    as_brought &= projected->q.is_same(brought);
  }
  if (config_.keys_from >= 0) return false;
  if (taps.Need({key_hook_, rotated_key_hook_}, z_hook_) || (config_.key_value && taps.Need({value_hook_}, z_hook_))) {
    projected->k = project(weights_.key, 1);  // (B * T, K E)
    const at::Tensor brought = projected->k;
    if (taps(key_hook_, projected->k)) return true;
    as_brought &= projected->k.is_same(brought);
  }
  if (as_brought) projected->query_key = all.narrow(1, 0, projected->q.size(1) + projected->k.size(1));
  if (taps.Need({value_hook_}, z_hook_)) {
    projected->v = config_.key_value ? projected->k : WithEmbedding(h, project(weights_.value, 2), pass);
    if (taps(value_hook_, projected->v)) return true;
  }
  return false;
}

// v, the value projection of h, plus the gated embedding of the token's own values where the layer has one.
at::Tensor SoftmaxAttention::WithEmbedding(const at::Tensor& h, const at::Tensor& v, const ForwardPass& pass) const {
  if (!weights_.value_embedding.defined()) return v;
  const std::array<int64_t, 3> by_head = {-1, config_.key_value_heads, config_.head_width};
  const at::Tensor embedded = at::index_select(weights_.value_embedding, 0, pass.token_ids.reshape(-1)).to(pass.dtype);
  const at::Tensor gate = at::mm(h.narrow(1, 0, weights_.value_embedding_gate.size(0)), weights_.value_embedding_gate)
                              .sigmoid_()
                              .mul_(config_.value_embedding_factor);  // (B * T, K)
  return (v.view(by_head) + gate.unsqueeze(-1) * embedded.view(by_head)).view(v.sizes());
}

// The query/key norm of x (B, T, heads, E).
at::Tensor SoftmaxAttention::Normed(const at::Tensor& x, const OutputNorm& norm) const {
  const QueryKeyNormConfig& config = config_.query_key_norm;
  const bool per_head = config.span == QueryKeyNormConfig::Span::kHead;
  at::Tensor result = norm(x.reshape({-1, per_head ? x.size(3) : x.size(2) * x.size(3)}));
  if (config.factor != 1) result = result * config.factor;
  return result.view(x.sizes());
}

// Rows of queries or keys as attention uses them, (B, T, heads, E).
at::Tensor SoftmaxAttention::Prepared(const at::Tensor& rows, int64_t heads, const OutputNorm& norm,
                                      const ForwardPass& pass) const {
  const QueryKeyNormConfig& config = config_.query_key_norm;
  const bool has_norm = config.norm.kind != NormConfig::Kind::kNone;
  at::Tensor x = rows.view({pass.batch(), pass.positions(), heads, config_.head_width});
  if (has_norm && config.place == QueryKeyNormConfig::Place::kBeforeRotary) x = Normed(x, norm);
  if (config_.clamp != 0) x = x.clamp(-config_.clamp, config_.clamp);
  if (config_.rotary >= 0) x = pass.rotary.Rotate(config_.rotary, x);
  if (has_norm && config.place == QueryKeyNormConfig::Place::kAfterRotary) x = Normed(x, norm);
  return x;
}

at::Tensor SoftmaxAttention::PreparedValues(const at::Tensor& rows, const ForwardPass& pass) const {
  at::Tensor v = rows.view({pass.batch(), pass.positions(), config_.key_value_heads, config_.head_width});
  if (config_.value_norm.kind != NormConfig::Kind::kNone) v = value_norm_(v);
  if (config_.clamp != 0) v = v.clamp(-config_.clamp, config_.clamp);
  return v;
}

}  // namespace hookline
