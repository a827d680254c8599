// Softmax attention with grouped queries, in all the forms that the families have.
//
// H heads of E values read by queries, K of them by keys and values (query head a reads a / (H / K)):
//   q = h Wq, k = h Wk, v = h Wv                             hook_q (H E), hook_k (K E), hook_v (K E)
//   q, k = rotate(norm(q)), rotate(norm(k))                  hook_rot_q, hook_rot_k
//   z = softmax(scale q k^T, causal, within reach) v         hook_z (H E)
//   out = z Wo
// SoftmaxAttentionConfig says which norms, clamps, gates, caps and sinks there are, and where they are applied.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_SOFTMAX_ATTENTION_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_SOFTMAX_ATTENTION_H_

#include "server/model/attention/attention.h"
#include "server/model/layers.h"

namespace hookline {

class SoftmaxAttention : public Attention {
 public:
  SoftmaxAttention(const SoftmaxAttentionConfig& config, int layer, SoftmaxAttentionWeights weights,
                   HookPointList& hook_points);

  bool Run(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const override;

 private:
  // The queries, keys and values of one pass, first as rows, then by head. `gate` is (B * T, H, E) or undefined.
  struct Projected {
    at::Tensor q, k, v, gate;
    at::Tensor query_key;  // q and k side by side, as the projection returned them; undefined if either was changed
  };

  bool Project(const at::Tensor& h, ForwardPass& pass, Projected* projected) const;
  at::Tensor WithEmbedding(const at::Tensor& h, const at::Tensor& v, const ForwardPass& pass) const;
  at::Tensor Normed(const at::Tensor& x, const OutputNorm& norm) const;
  at::Tensor Prepared(const at::Tensor& rows, int64_t heads, const OutputNorm& norm, const ForwardPass& pass) const;
  at::Tensor PreparedValues(const at::Tensor& rows, const ForwardPass& pass) const;

  const SoftmaxAttentionConfig config_;
  const int layer_;
  const LinearWeights joined_;  // query, key and value side by side; undefined where they are separate
  const SoftmaxAttentionWeights weights_;
  const OutputNorm query_norm_, key_norm_, value_norm_;
  int query_hook_ = kNoHookPoint, key_hook_ = kNoHookPoint, value_hook_ = kNoHookPoint;
  int rotated_query_hook_ = kNoHookPoint, rotated_key_hook_ = kNoHookPoint;
  int z_hook_ = kNoHookPoint;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_SOFTMAX_ATTENTION_H_
