#include "server/model/decoder_hook_points.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// A kind of hook point as one decoder has it; width 0: not at all.
struct Kind {
  Hook hook;
  const char* name;  // inside the block, for those that are in one
  int64_t width;
  std::string description;
};

constexpr char kWeighted[] = " after its weight and bias: what the next layer reads.";

int64_t WidthOf(const NormConfig& norm, int64_t width) { return norm.kind == NormConfig::Kind::kNone ? 0 : width; }
int64_t OutWidthOf(const NormConfig& norm, int64_t width) { return norm.weighted ? WidthOf(norm, width) : 0; }

std::vector<Kind> BeforeBlocks(const DecoderConfig& c) {
  const int64_t d = c.width;
  return {
      {Hook::kEmbed, "hook_embed", d,
       absl::StrCat("The token's embedding", c.embedding_scale != 1 ? ", multiplied by the model's scale."
                                             : c.embedding_norm.kind != NormConfig::Kind::kNone ? ", before its norm."
                                                                                                : ".")},
      {Hook::kPositionEmbed, "hook_pos_embed", c.position_embedding ? d : 0, "The position's learned embedding."},
  };
}

std::vector<Kind> InBlock(const DecoderConfig& c, int layer) {
  const int64_t d = c.width, q = c.heads * c.head_width, kv = c.key_value_heads * c.head_width;
  const bool rotated = c.layers[layer].rotary >= 0;
  const bool normed = c.query_key_norm.norm.kind != NormConfig::Kind::kNone;
  const char* raw = normed ? ", before norm and rotation." : rotated ? ", before rotation." : ".";
  const char* turned =
      normed ? " as attention uses it, after norm and rotation." : " as attention uses it, after rotation.";
  return {
      {Hook::kResidPre, "hook_resid_pre", d, "The block's input."},
      {Hook::kLn1Normalized, "ln1.hook_normalized", WidthOf(c.ln1, d),
       c.ln1.weighted ? "The norm before attention, before its weight."
                      : "The norm of the block's input: what attention reads."},
      {Hook::kLn1Out, "ln1.hook_out", OutWidthOf(c.ln1, d), absl::StrCat("The norm before attention", kWeighted)},
      {Hook::kQuery, "attn.hook_q", q, absl::StrCat("The query projection", raw)},
      {Hook::kKey, "attn.hook_k", kv, absl::StrCat("The key projection", raw)},
      {Hook::kValue, "attn.hook_v", kv,
       c.value_embedding_factor != 0
           ? "The values as attention uses them, with the gated value embedding where the block has one."
           : "The value projection."},
      {Hook::kRotatedQuery, "attn.hook_rot_q", rotated ? q : 0, absl::StrCat("The query", turned)},
      {Hook::kRotatedKey, "attn.hook_rot_k", rotated ? kv : 0, absl::StrCat("The key", turned)},
      {Hook::kZ, "attn.hook_z", q, "Attention's result per head, before the output projection."},
      {Hook::kLn1PostNormalized, "ln1_post.hook_normalized", WidthOf(c.ln1_post, d),
       "The norm after attention, before its weight."},
      {Hook::kLn1PostOut, "ln1_post.hook_out", OutWidthOf(c.ln1_post, d),
       "The norm after attention, after its weight."},
      {Hook::kAttentionOut, "hook_attn_out", d, "What attention adds to the residual stream."},
      {Hook::kResidMid, "hook_resid_mid", c.parallel ? 0 : d, "The residual stream between attention and MLP."},
      {Hook::kLn2Normalized, "ln2.hook_normalized", WidthOf(c.ln2, d),
       c.ln2.weighted ? "The norm before the MLP, before its weight." : "The norm before the MLP: what the MLP reads."},
      {Hook::kLn2Out, "ln2.hook_out", OutWidthOf(c.ln2, d), absl::StrCat("The norm before the MLP", kWeighted)},
      {Hook::kMlpPre, "mlp.hook_pre", c.mlp_width,
       c.gated ? "The MLP's gate projection, before the activation function."
               : "The MLP's hidden layer, before the activation function."},
      {Hook::kMlpPreLinear, "mlp.hook_pre_linear", c.gated ? c.mlp_width : 0,
       "The MLP's up projection, which the gate multiplies."},
      {Hook::kMlpPost, "mlp.hook_post", c.mlp_width,
       c.gated ? "The activation function of the gate, times the up projection."
               : "The MLP's hidden layer, after the activation function."},
      {Hook::kLn2PostNormalized, "ln2_post.hook_normalized", WidthOf(c.ln2_post, d),
       "The norm after the MLP, before its weight."},
      {Hook::kLn2PostOut, "ln2_post.hook_out", OutWidthOf(c.ln2_post, d), "The norm after the MLP, after its weight."},
      {Hook::kMlpOut, "hook_mlp_out", d, "What the MLP adds to the residual stream."},
      {Hook::kResidPost, "hook_resid_post", d, "The block's output."},
  };
}

std::vector<Kind> AfterBlocks(const DecoderConfig& c) {
  return {
      {Hook::kLnFinalNormalized, "ln_final.hook_normalized", c.width,
       c.ln_final.weighted ? "The last norm, before its weight." : "The last norm: what the unembedding reads."},
      {Hook::kLnFinalOut, "ln_final.hook_out", OutWidthOf(c.ln_final, c.width),
       "The last norm after its weight and bias: what the unembedding reads."},
  };
}

}  // namespace

DecoderHookPoints::DecoderHookPoints(const DecoderConfig& config) {
  const int layers = static_cast<int>(config.layers.size());
  // What stands outside the blocks has the same index whatever the layer.
  index_.assign(static_cast<size_t>(layers) * kHookKinds, -1);
  std::vector<HookPoint> points;
  absl::flat_hash_map<std::string, int> aliases;
  auto add = [&](const Kind& kind, const std::string& name, int layer) {
    if (kind.width == 0) return;
    const int index = static_cast<int>(points.size());
    const bool in_block = layer >= 0 && layer < layers;
    for (int i = in_block ? layer : 0; i < (in_block ? layer + 1 : layers); ++i) {
      index_[static_cast<size_t>(i * kHookKinds) + static_cast<int>(kind.hook)] = index;
    }
    points.push_back({name, kind.width, layer, kind.description});
  };

  for (const Kind& kind : BeforeBlocks(config)) add(kind, kind.name, -1);
  for (int i = 0; i < layers; ++i) {
    const std::string block = absl::StrCat("blocks.", i, ".");
    for (const Kind& kind : InBlock(config, i)) add(kind, block + kind.name, i);
    aliases[block + "hook_attn"] = Index(Hook::kAttentionOut, i);
    aliases[block + "hook_mlp"] = Index(Hook::kMlpOut, i);
  }
  for (const Kind& kind : AfterBlocks(config)) add(kind, kind.name, layers);
  points_ = HookPoints(std::move(points), std::move(aliases));
}

}  // namespace hookline
