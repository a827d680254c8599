// One block of a decoder: attention, feed-forward and the norms around them, with the block's hook points.
//
//   sequential   y = x + attention(ln1 x);  x = y + mlp(ln2 y)
//   parallel     x = x + attention(ln1 x) + mlp(ln2 x); without an ln2 the MLP reads ln1 x too
//   post-norm    y = ln1(x + attention(x)); x = ln2(y + mlp(y))
// A sublayer's output passes ln1_post or ln2_post first, where there is one, and is multiplied by branch_scale.
#ifndef HOOKLINE_SERVER_MODEL_BLOCK_H_
#define HOOKLINE_SERVER_MODEL_BLOCK_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "server/model/attention/attention.h"
#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/feed_forward/feed_forward.h"
#include "server/model/forward_pass.h"
#include "server/model/hook_point_list.h"
#include "server/model/layers.h"

namespace hookline {

// A norm with its hook points: `<name>.hook_scale`, its divisor, of width 1, `<name>.hook_normalized` before its weight
// and `<name>.hook_out` after it. Where the configuration has no norm in this place, it returns its input.
class NormPlace {
 public:
  // `what` begins the hook points' descriptions: "The norm before attention". `reader` (or null) names the part that
  // reads the norm's output. `dtype` is the model's.
  NormPlace(const NormConfig& config, NormWeights weights, int64_t width, at::ScalarType dtype, const std::string& name,
            const std::string& what, const char* reader, HookPointList& hook_points);

  bool exists() const { return norm_.config().kind != NormConfig::Kind::kNone; }

  // x (B * T, width). Returns true if the last hook point was tapped.
  bool Run(const at::Tensor& x, Taps& taps, at::Tensor* out) const;

 private:
  const OutputNorm norm_;  // for passes that tap none of its inner hook points
  int scale_hook_ = kNoHookPoint, normalized_hook_ = kNoHookPoint, out_hook_ = kNoHookPoint;
};

class Block {
 public:
  // Adds its hook points as `blocks.<layer>.*`; `blocks.<layer>.hook_attn` and `hook_mlp`, the original collector's,
  // are aliases of hook_attn_out and hook_mlp_out. `dtype` is the model's.
  Block(const DecoderConfig& config, int layer, LayerWeights weights, at::ScalarType dtype, HookPointList& hook_points);

  // Replaces x (B * T, width) by the block's output. Returns true if the last hook point was tapped.
  bool Run(ForwardPass& pass, at::Tensor* x) const;

 private:
  // A sublayer with its norms.
  struct Branch {
    std::unique_ptr<NormPlace> norm;       // before the sublayer; in post-norm blocks after the residual sum
    std::unique_ptr<NormPlace> post_norm;  // after the sublayer, before the residual sum
    int raw_hook = kNoHookPoint;           // the sublayer's output, where a norm follows
    int out_hook = kNoHookPoint;           // what is added to the residual stream
  };

  // The parts from which a branch of the block is made. The weights are moved from.
  struct BranchParts {
    const NormConfig& norm;
    NormWeights& norm_weights;
    const NormConfig& post_norm;
    NormWeights& post_norm_weights;
    const char* sublayer = "";   // its name in descriptions
    const char* follower = "";   // the reader of a post-norm block's norm
    const char* norm_name = "";  // "ln1"
    const char* raw_hook = "";
    const char* out_hook = "";
    const char* alias = "";  // of out_hook
  };

  void MakeAttentionBranch(const DecoderConfig& config, LayerWeights& weights, HookPointList& hook_points);
  void MakeFeedForwardBranch(const DecoderConfig& config, LayerWeights& weights, HookPointList& hook_points);
  void AddNorm(const BranchParts& parts, int64_t width, Branch& branch, HookPointList& hook_points) const;
  void AddOutput(const BranchParts& parts, int64_t width, Branch& branch, HookPointList& hook_points) const;

  bool RunSequential(ForwardPass& pass, at::Tensor* x) const;
  bool RunParallel(ForwardPass& pass, at::Tensor* x) const;
  bool RunPostNorm(ForwardPass& pass, at::Tensor* x) const;
  bool Attend(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const;
  bool FeedOn(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const;
  bool Close(const Branch& branch, ForwardPass& pass, at::Tensor* out) const;

  const int layer_;
  const at::ScalarType dtype_;
  const DecoderConfig::Arrangement arrangement_;
  const double branch_scale_;
  const PerLayerEmbeddingConfig per_layer_config_;
  const PerLayerWeights per_layer_;
  const at::Tensor output_scale_;
  Branch attention_branch_, feed_forward_branch_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<FeedForward> feed_forward_;
  int resid_pre_hook_ = kNoHookPoint, resid_mid_hook_ = kNoHookPoint, resid_post_hook_ = kNoHookPoint;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_BLOCK_H_
