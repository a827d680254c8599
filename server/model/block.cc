#include "server/model/block.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/layers.h"
#include "server/model/per_layer_embedding.h"

namespace hookline {
namespace {

using Arrangement = DecoderConfig::Arrangement;

}  // namespace

NormPlace::NormPlace(const NormConfig& config, NormWeights weights, int64_t width, at::ScalarType dtype,
                     const std::string& name, const std::string& what, const char* reader, HookPointList& hook_points)
    : norm_(config, std::move(weights), dtype) {
  if (!exists()) return;
  scale_hook_ = hook_points.Add(
      name + ".hook_scale", 1,
      absl::StrCat(what, ": what its input", config.kind == NormConfig::Kind::kLayer ? ", without its mean," : "",
                   " is divided by, sqrt(mean of squares + epsilon)."));
  normalized_hook_ = hook_points.Add(
      name + ".hook_normalized", width,
      config.weighted ? absl::StrCat(what, ", before its weight.") : absl::StrCat(what, ": what ", reader, " reads."));
  if (!config.weighted) return;
  out_hook_ = hook_points.Add(
      name + ".hook_out", width,
      absl::StrCat(what, " after its weight",
                   reader == nullptr ? std::string(".") : absl::StrCat(" and bias: what ", reader, " reads.")));
}

bool NormPlace::Run(const at::Tensor& x, Taps& taps, at::Tensor* out) const {
  *out = x;
  if (!exists()) return false;
  Normed norm;
  if (taps.IsNext(scale_hook_)) {
    const at::Tensor own = NormScale(x, norm_.config());
    at::Tensor scale = own;
    if (taps(scale_hook_, scale)) return true;
    if (!scale.is_same(own)) norm = NormBy(scale, x, norm_.config(), norm_.weights());
  }
  if (!norm.normalized.defined() && !taps.Wants(normalized_hook_)) {
    *out = norm_(x);
    return taps(out_hook_, *out);
  }
  if (!norm.normalized.defined()) norm = Norm(x, norm_.config(), norm_.weights());
  at::Tensor normalized = norm.normalized;
  if (taps(normalized_hook_, normalized)) return true;
  *out = normalized.is_same(norm.normalized) ? norm.out : Weighted(normalized, norm_.weights());
  return taps(out_hook_, *out);
}

Block::Block(const DecoderConfig& config, int layer, LayerWeights weights, at::ScalarType dtype,
             HookPointList& hook_points)
    : layer_(layer),
      dtype_(dtype),
      arrangement_(config.arrangement),
      branch_scale_(config.branch_scale),
      per_layer_config_(config.per_layer_embedding),
      per_layer_(std::move(weights.per_layer)),
      output_scale_(std::move(weights.output_scale)) {
  const int64_t d = config.width;
  hook_points.Enter(absl::StrCat("blocks.", layer, "."), layer);
  resid_pre_hook_ = hook_points.Add("hook_resid_pre", d, "The block's input.");
  MakeAttentionBranch(config, weights, hook_points);
  MakeFeedForwardBranch(config, weights, hook_points);
  // In a post-norm block this is the output of ln2, whose hook points come before it.
  resid_post_hook_ = hook_points.Add("hook_resid_post", d, "The block's output.");
}

// Both Make...Branch add hook points in the order in which Run computes them.
void Block::MakeAttentionBranch(const DecoderConfig& config, LayerWeights& weights, HookPointList& hook_points) {
  BranchParts parts{config.ln1, weights.ln1, config.ln1_post, weights.ln1_post};
  parts.sublayer = "attention";
  parts.follower = "the MLP";
  parts.norm_name = "ln1";
  parts.raw_hook = "attn.hook_out";
  parts.out_hook = "hook_attn_out";
  parts.alias = "hook_attn";
  const bool post_norm = arrangement_ == Arrangement::kPostNorm;
  if (!post_norm) AddNorm(parts, config.width, attention_branch_, hook_points);
  attention_ = MakeAttention(config, layer_, std::move(weights.attention), hook_points);
  AddOutput(parts, config.width, attention_branch_, hook_points);
  if (arrangement_ != Arrangement::kParallel) {
    resid_mid_hook_ = hook_points.Add("hook_resid_mid", config.width, "The residual stream between attention and MLP.");
  }
  if (post_norm) AddNorm(parts, config.width, attention_branch_, hook_points);
}

void Block::MakeFeedForwardBranch(const DecoderConfig& config, LayerWeights& weights, HookPointList& hook_points) {
  BranchParts parts{config.ln2, weights.ln2, config.ln2_post, weights.ln2_post};
  parts.sublayer = "the MLP";
  parts.follower = "the next block";
  parts.norm_name = "ln2";
  parts.raw_hook = "mlp.hook_out";
  parts.out_hook = "hook_mlp_out";
  parts.alias = "hook_mlp";
  const bool post_norm = arrangement_ == Arrangement::kPostNorm;
  if (!post_norm) AddNorm(parts, config.width, feed_forward_branch_, hook_points);
  feed_forward_ = MakeFeedForward(config.layers[layer_].feed_forward, std::move(weights.feed_forward), hook_points);
  AddOutput(parts, config.width, feed_forward_branch_, hook_points);
  if (post_norm) AddNorm(parts, config.width, feed_forward_branch_, hook_points);
}

// The norm before the sublayer; in post-norm blocks the one after the residual sum.
void Block::AddNorm(const BranchParts& parts, int64_t width, Branch& branch, HookPointList& hook_points) const {
  const bool post_norm = arrangement_ == Arrangement::kPostNorm;
  branch.norm = std::make_unique<NormPlace>(
      parts.norm, std::move(parts.norm_weights), width, dtype_, parts.norm_name,
      absl::StrCat(post_norm ? "The norm of the residual stream after " : "The norm before ", parts.sublayer),
      post_norm ? parts.follower : parts.sublayer, hook_points);
}

// Adds the norm after the sublayer, if there is one, and the hook point of what is added to the residual stream.
void Block::AddOutput(const BranchParts& parts, int64_t width, Branch& branch, HookPointList& hook_points) const {
  if (parts.post_norm.kind != NormConfig::Kind::kNone) {
    branch.raw_hook = hook_points.Add(
        parts.raw_hook, width, absl::StrCat("The output of ", parts.sublayer, ", before the norm that follows it."));
  }
  branch.post_norm = std::make_unique<NormPlace>(parts.post_norm, std::move(parts.post_norm_weights), width, dtype_,
                                                 absl::StrCat(parts.norm_name, "_post"),
                                                 absl::StrCat("The norm after ", parts.sublayer), nullptr, hook_points);
  branch.out_hook =
      hook_points.Add(parts.out_hook, width,
                      absl::StrCat("The output of ", parts.sublayer, ", as it is added to the residual stream."));
  hook_points.Alias(parts.alias, branch.out_hook);
}

bool Block::Run(ForwardPass& pass, at::Tensor* x) const {
  if (pass.taps(resid_pre_hook_, *x)) return true;
  switch (arrangement_) {
    case Arrangement::kSequential:
      if (RunSequential(pass, x)) return true;
      break;
    case Arrangement::kParallel:
      if (RunParallel(pass, x)) return true;
      break;
    case Arrangement::kPostNorm:
      if (RunPostNorm(pass, x)) return true;
      break;
  }
  if (pass.per_layer.defined()) {
    *x = *x + PerLayerPart(per_layer_config_, per_layer_, *x, pass.per_layer.select(1, layer_));
  }
  if (output_scale_.defined()) *x = *x * output_scale_;
  return pass.taps(resid_post_hook_, *x);
}

bool Block::RunSequential(ForwardPass& pass, at::Tensor* x) const {
  at::Tensor h, out;
  if (attention_branch_.norm->Run(*x, pass.taps, &h) || Attend(h, pass, &out)) return true;
  at::Tensor middle = *x + out;
  if (pass.taps(resid_mid_hook_, middle)) return true;
  if (feed_forward_branch_.norm->Run(middle, pass.taps, &h) || FeedOn(h, pass, &out)) return true;
  *x = middle + out;
  return false;
}

bool Block::RunParallel(ForwardPass& pass, at::Tensor* x) const {
  const bool own_norm = feed_forward_branch_.norm->exists();
  at::Tensor h, attention_out, out;
  // If only the MLP's hook points are left, attention is not computed.
  const bool skips = pass.taps.NextIsAfter(attention_branch_.out_hook) && !pass.taps.Reach(resid_post_hook_);
  if ((!skips || !own_norm) && attention_branch_.norm->Run(*x, pass.taps, &h)) return true;
  if (!skips && Attend(h, pass, &attention_out)) return true;
  if (own_norm && feed_forward_branch_.norm->Run(*x, pass.taps, &h)) return true;
  if (FeedOn(h, pass, &out)) return true;
  *x = *x + attention_out + out;
  return false;
}

bool Block::RunPostNorm(ForwardPass& pass, at::Tensor* x) const {
  at::Tensor out, middle;
  if (Attend(*x, pass, &out)) return true;
  out = *x + out;
  if (pass.taps(resid_mid_hook_, out) || attention_branch_.norm->Run(out, pass.taps, &middle)) return true;
  if (FeedOn(middle, pass, &out)) return true;
  return feed_forward_branch_.norm->Run(middle + out, pass.taps, x);
}

bool Block::Attend(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const {
  return attention_->Run(h, pass, out) || Close(attention_branch_, pass, out);
}

bool Block::FeedOn(const at::Tensor& h, ForwardPass& pass, at::Tensor* out) const {
  return feed_forward_->Run(h, pass.taps, out) || Close(feed_forward_branch_, pass, out);
}

// Turns what a sublayer returned into what is added to the residual stream.
bool Block::Close(const Branch& branch, ForwardPass& pass, at::Tensor* out) const {
  if (pass.taps(branch.raw_hook, *out)) return true;
  const at::Tensor raw = *out;
  if (branch.post_norm->Run(raw, pass.taps, out)) return true;
  if (branch_scale_ != 1) *out = *out * branch_scale_;
  return pass.taps(branch.out_hook, *out);
}

}  // namespace hookline
