#include "server/model/decoder.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <new>
#include <utility>

#include "server/model/layers.h"
#include "server/model/torch_compat.h"

namespace hookline {

// What one pass has still to record.
class Decoder::Taps {
 public:
  Taps(const DecoderHookPoints& hooks, absl::Span<const int> wanted, Tap tap)
      : hooks_(hooks), wanted_(wanted), tap_(tap) {}

  // Records `value`, (batch, positions, ...) or rows already, if it is wanted. Returns whether it was the last one.
  bool operator()(Hook hook, int layer, const at::Tensor& value) {
    if (!Wants(hook, layer)) return wanted_.empty();
    const int index = wanted_.front();
    wanted_.remove_prefix(1);
    tap_(index, value.reshape({-1, hooks_.points()[index].width}));
    return wanted_.empty();
  }

  // Whether one of `hooks` is to be recorded, or the pass goes on to `reader`, which is computed from them.
  bool Need(std::initializer_list<Hook> hooks, Hook reader, int layer) const {
    return Reach(reader, layer) || std::any_of(hooks.begin(), hooks.end(), [&](Hook hook) {
             return std::binary_search(wanted_.begin(), wanted_.end(), hooks_.Index(hook, layer));
           });
  }

  // Whether the pass goes on to `hook`, which every decoder has.
  bool Reach(Hook hook, int layer) const { return !wanted_.empty() && wanted_.back() >= hooks_.Index(hook, layer); }

  // Whether what is recorded next comes after `hook`, which every decoder has.
  bool NextIsAfter(Hook hook, int layer) const {
    return !wanted_.empty() && wanted_.front() > hooks_.Index(hook, layer);
  }

 private:
  bool Wants(Hook hook, int layer) const { return !wanted_.empty() && hooks_.Index(hook, layer) == wanted_.front(); }

  const DecoderHookPoints& hooks_;
  absl::Span<const int> wanted_;  // ascending, as they are computed
  Tap tap_;
};

Decoder::Decoder(ModelInfo info, DecoderConfig config, DecoderWeights weights, at::ScalarType dtype)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      hooks_(config_),
      dtype_(dtype),
      rotary_(config_.rotary, weights_.token_embedding.device(), dtype),
      masks_(weights_.token_embedding.device()) {
  info_ = std::move(info);
  info_.layers = static_cast<int>(config_.layers.size());
  info_.width = config_.width;
  info_.heads = static_cast<int>(config_.heads);
  info_.key_value_heads = static_cast<int>(config_.key_value_heads);
  info_.context_length = config_.context_length;
  info_.vocabulary_size = config_.vocabulary_size;
  hook_points_ = hooks_.points();
}

absl::Status Decoder::Forward(const at::Tensor& token_ids, absl::Span<const int> hook_points, Tap tap) {
  try {
    c10::InferenceMode inference;
    Taps taps(hooks_, hook_points, tap);
    Run(token_ids, taps);
    return absl::OkStatus();
  } catch (const c10::Error& error) {
    return IsOutOfMemory(error) ? absl::ResourceExhaustedError(error.what_without_backtrace())
                                : absl::InternalError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory for a forward pass");
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

// B sequences of T tokens, D = width; x is (B * T, D).
bool Decoder::Run(const at::Tensor& token_ids, Taps& taps) {
  const int layers = static_cast<int>(config_.layers.size());
  at::Tensor x;
  if (Embed(token_ids, taps, &x)) return true;
  const at::Tensor x0 = x;
  at::Tensor bigram = weights_.bigram_embedding.defined() ? EmbedBigrams(token_ids) : at::Tensor();
  at::Tensor kept;
  for (int i = 0; i < layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    if (layer.residual_factor != 1) x = x * layer.residual_factor;
    if (layer.embedding_factor != 0) x = x + x0 * layer.embedding_factor;
    if (bigram.defined()) x = x + bigram * layer.bigram_factor;
    if (Block(i, token_ids, taps, &x)) return true;
    if (i == layers / 2) kept = x;
  }
  if (weights_.backout_factor != 0) x = at::sub(x, kept, weights_.backout_factor);
  const Normed norm = Norm(x, config_.ln_final, weights_.ln_final);
  return taps(Hook::kLnFinalNormalized, 0, norm.normalized) || taps(Hook::kLnFinalOut, 0, norm.out);
}

bool Decoder::Embed(const at::Tensor& token_ids, Taps& taps, at::Tensor* out) {
  const int64_t batch = token_ids.size(0), positions = token_ids.size(1);
  at::Tensor x = at::index_select(weights_.token_embedding, 0, token_ids.reshape(-1)).to(dtype_);
  if (config_.embedding_scale != 1) {
    // The factor itself is a number of the model's dtype.
    x = x * at::scalar_tensor(config_.embedding_scale, at::TensorOptions().dtype(dtype_).device(x.device()));
  }
  if (taps(Hook::kEmbed, 0, x)) return true;
  if (config_.position_embedding) {
    const at::Tensor table = weights_.position_embedding.narrow(0, 0, positions).to(dtype_);
    const at::Tensor embedded = table.unsqueeze(0).expand({batch, positions, config_.width});
    if (taps(Hook::kPositionEmbed, 0, embedded)) return true;
    x = (x.view({batch, positions, config_.width}) + embedded).view({-1, config_.width});
  }
  if (config_.embedding_norm.kind != NormConfig::Kind::kNone) x = Norm(x, config_.embedding_norm, {}).out;
  if (weights_.smear_gate.defined() && positions > 1) {
    // x[t] += factor sigmoid(x[t, :channels] gate) x[t - 1]
    const at::Tensor rows = x.view({batch, positions, config_.width});
    const at::Tensor later = rows.narrow(1, 1, positions - 1);
    const at::Tensor channels = later.narrow(2, 0, weights_.smear_gate.size(0));
    const at::Tensor gate = at::matmul(channels, weights_.smear_gate).sigmoid_().mul_(weights_.smear_factor);
    x = at::cat({rows.narrow(1, 0, 1), later + gate * rows.narrow(1, 0, positions - 1)}, 1).view({-1, config_.width});
  }
  *out = x;
  return false;
}

// Rows of the table at (36313 token[t] XOR 27191 token[t-1]) mod (rows - 1), and at rows - 1 for position 0.
at::Tensor Decoder::EmbedBigrams(const at::Tensor& token_ids) const {
  const int64_t last = 5 * config_.vocabulary_size - 1;
  const int64_t positions = token_ids.size(1);
  at::Tensor index = at::full_like(token_ids, last);
  if (positions > 1) {
    const at::Tensor hashed =
        at::bitwise_xor(token_ids.narrow(1, 1, positions - 1) * 36313, token_ids.narrow(1, 0, positions - 1) * 27191);
    index.narrow(1, 1, positions - 1).copy_(hashed.remainder(last));
  }
  return at::index_select(weights_.bigram_embedding, 0, index.view(-1)).to(dtype_);
}

// x -> x + attention(ln1 x) + mlp(ln2 (x + attention)), or in parallel x + attention(ln1 x) + mlp(ln2 x).
bool Decoder::Block(int i, const at::Tensor& token_ids, Taps& taps, at::Tensor* x) {
  ++blocks_executed_;
  const at::Tensor before = *x;
  if (taps(Hook::kResidPre, i, before)) return true;
  if (config_.parallel && taps.NextIsAfter(Hook::kAttentionOut, i) && !taps.Reach(Hook::kResidPost, i)) {
    return Mlp(i, before, taps, x);
  }
  at::Tensor attention_out;
  if (Attention(i, token_ids, before, taps, &attention_out)) return true;
  const at::Tensor middle = before + attention_out;
  if (!config_.parallel && taps(Hook::kResidMid, i, middle)) return true;
  at::Tensor mlp_out;
  if (Mlp(i, config_.parallel ? before : middle, taps, &mlp_out)) return true;
  *x = middle + mlp_out;
  return taps(Hook::kResidPost, i, *x);
}

// v, the value projection of h, and the gated embedding of the token's own values where the layer has one.
at::Tensor Decoder::Values(const LayerWeights& layer, const at::Tensor& token_ids, const at::Tensor& h,
                           const at::Tensor& v) const {
  if (!layer.value_embedding.defined()) return v;
  const std::array<int64_t, 3> by_head = {-1, config_.key_value_heads, config_.head_width};
  const at::Tensor embedded = at::index_select(layer.value_embedding, 0, token_ids.reshape(-1)).to(dtype_);
  const at::Tensor gate = at::mm(h.narrow(1, 0, layer.value_embedding_gate.size(0)), layer.value_embedding_gate)
                              .sigmoid_()
                              .mul_(config_.value_embedding_factor);  // (B * T, K)
  return (v.view(by_head) + gate.unsqueeze(-1) * embedded.view(by_head)).view(v.sizes());
}

// H heads of E values read by queries, K of them by keys and values.
bool Decoder::Attention(int i, const at::Tensor& token_ids, const at::Tensor& x, Taps& taps, at::Tensor* out) {
  const LayerWeights& layer = weights_.layers[i];
  const LayerConfig& config = config_.layers[i];
  const int64_t batch = token_ids.size(0), positions = token_ids.size(1);
  const int64_t heads = config_.heads, groups = config_.key_value_heads, width = config_.head_width;

  at::Tensor h = x;
  if (config_.ln1.kind != NormConfig::Kind::kNone) {
    const Normed norm = Norm(x, config_.ln1, layer.ln1);
    if (taps(Hook::kLn1Normalized, i, norm.normalized)) return true;
    h = norm.out;
    if (taps(Hook::kLn1Out, i, h)) return true;
  }

  at::Tensor all;
  const auto project = [&](const LinearWeights& own, int64_t part) -> at::Tensor {
    if (!layer.query_key_value.weight.defined()) return Linear(h, own);
    if (!all.defined()) all = Linear(h, layer.query_key_value).view({batch * positions, heads, 3, width});
    return all.select(2, part).reshape({batch * positions, heads * width});
  };
  // Where the pass ends before attention, only what is tapped is projected.
  at::Tensor q, k, v;
  if (taps.Need({Hook::kQuery, Hook::kRotatedQuery}, Hook::kZ, i)) {
    q = project(layer.query, 0);  // (B * T, H E)
    if (taps(Hook::kQuery, i, q)) return true;
  }
  if (taps.Need({Hook::kKey, Hook::kRotatedKey}, Hook::kZ, i)) {
    k = project(layer.key, 1);  // (B * T, K E)
    if (taps(Hook::kKey, i, k)) return true;
  }
  if (taps.Need({Hook::kValue}, Hook::kZ, i)) {
    v = Values(layer, token_ids, h, project(layer.value, 2));  // (B * T, K E)
    if (taps(Hook::kValue, i, v)) return true;
  }

  const QueryKeyNormConfig& query_key_norm = config_.query_key_norm;
  const auto prepare = [&](at::Tensor t, int64_t count, const NormWeights& norm) {
    const auto normed = [&](const at::Tensor& value) {
      const bool per_head = query_key_norm.span == QueryKeyNormConfig::Span::kHead;
      at::Tensor result = Norm(value.reshape({-1, per_head ? width : count * width}), query_key_norm.norm, norm).out;
      if (query_key_norm.factor != 1) result = result * query_key_norm.factor;
      return result.view({batch, positions, count, width});
    };
    const bool has_norm = query_key_norm.norm.kind != NormConfig::Kind::kNone;
    t = t.view({batch, positions, count, width});
    if (has_norm && query_key_norm.place == QueryKeyNormConfig::Place::kBeforeRotary) t = normed(t);
    if (config.rotary >= 0) t = rotary_.Rotate(config.rotary, t);
    if (has_norm && query_key_norm.place == QueryKeyNormConfig::Place::kAfterRotary) t = normed(t);
    return t;
  };
  if (q.defined()) {
    q = prepare(q, heads, layer.query_norm);
    if (taps(Hook::kRotatedQuery, i, q)) return true;
  }
  k = prepare(k, groups, layer.key_norm);
  if (taps(Hook::kRotatedKey, i, k)) return true;

  const at::Tensor z = Attend(q, k, v.view({batch, positions, groups, width}),
                              {config.attention_scale, config_.attention_soft_cap, config.reach}, masks_);
  if (taps(Hook::kZ, i, z)) return true;
  *out = Linear(z.view({-1, heads * width}), layer.attention_out);
  if (config_.ln1_post.kind != NormConfig::Kind::kNone) {
    const Normed norm = Norm(*out, config_.ln1_post, layer.ln1_post);
    if (taps(Hook::kLn1PostNormalized, i, norm.normalized) || taps(Hook::kLn1PostOut, i, norm.out)) return true;
    *out = norm.out;
  }
  return taps(Hook::kAttentionOut, i, *out);
}

bool Decoder::Mlp(int i, const at::Tensor& x, Taps& taps, at::Tensor* out) {
  const LayerWeights& layer = weights_.layers[i];
  at::Tensor h = x;
  if (config_.ln2.kind != NormConfig::Kind::kNone) {
    const Normed norm = Norm(x, config_.ln2, layer.ln2);
    if (taps(Hook::kLn2Normalized, i, norm.normalized)) return true;
    h = norm.out;
    if (taps(Hook::kLn2Out, i, h)) return true;
  }
  at::Tensor hidden;  // (B * T, mlp_width)
  if (config_.gated) {
    at::Tensor pre;
    if (taps.Need({Hook::kMlpPre}, Hook::kMlpPost, i)) {
      pre = Linear(h, layer.gate);
      if (taps(Hook::kMlpPre, i, pre)) return true;
    }
    const at::Tensor linear = Linear(h, layer.up);
    if (taps(Hook::kMlpPreLinear, i, linear)) return true;
    hidden = Activate(pre, config_.activation).mul_(linear);
  } else {
    const at::Tensor pre = Linear(h, layer.up);
    if (taps(Hook::kMlpPre, i, pre)) return true;
    hidden = Activate(pre, config_.activation);
  }
  if (taps(Hook::kMlpPost, i, hidden)) return true;
  *out = Linear(hidden, layer.down);
  if (config_.ln2_post.kind != NormConfig::Kind::kNone) {
    const Normed norm = Norm(*out, config_.ln2_post, layer.ln2_post);
    if (taps(Hook::kLn2PostNormalized, i, norm.normalized) || taps(Hook::kLn2PostOut, i, norm.out)) return true;
    *out = norm.out;
  }
  return taps(Hook::kMlpOut, i, *out);
}

}  // namespace hookline
