// Which tensors of a decoder can be tapped, in the order in which a pass computes them.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_HOOK_POINTS_H_
#define HOOKLINE_SERVER_MODEL_DECODER_HOOK_POINTS_H_

#include <vector>

#include "server/model/decoder_config.h"
#include "server/model/hook_points.h"

namespace hookline {

// The kinds of hook points. Within a block they are computed in this order.
enum class Hook {
  kEmbed,
  kPositionEmbed,
  kResidPre,
  kLn1Normalized,
  kLn1Out,
  kQuery,
  kKey,
  kValue,
  kRotatedQuery,
  kRotatedKey,
  kZ,
  kLn1PostNormalized,
  kLn1PostOut,
  kAttentionOut,
  kResidMid,
  kLn2Normalized,
  kLn2Out,
  kMlpPre,
  kMlpPreLinear,
  kMlpPost,
  kLn2PostNormalized,
  kLn2PostOut,
  kMlpOut,
  kResidPost,
  kLnFinalNormalized,
  kLnFinalOut,
};
constexpr int kHookKinds = static_cast<int>(Hook::kLnFinalOut) + 1;

// The hook points of a decoder of a given configuration. Immutable.
class DecoderHookPoints {
 public:
  explicit DecoderHookPoints(const DecoderConfig& config);

  // Under TransformerLens's names; `blocks.i.hook_attn` and `blocks.i.hook_mlp`, the original collector's, are aliases
  // of hook_attn_out and hook_mlp_out.
  const HookPoints& points() const { return points_; }

  // Index into points(), or -1 where the decoder has no such hook point. `layer` matters inside blocks only.
  int Index(Hook hook, int layer) const {
    return index_[static_cast<size_t>(layer * kHookKinds) + static_cast<int>(hook)];
  }

 private:
  HookPoints points_;
  std::vector<int> index_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_HOOK_POINTS_H_
