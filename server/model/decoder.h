// The forward pass of a decoder-only transformer, driven by its configuration.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_H_
#define HOOKLINE_SERVER_MODEL_DECODER_H_

#include <atomic>
#include <memory>
#include <vector>

#include "server/model/attention/attend.h"
#include "server/model/block.h"
#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/model.h"
#include "server/model/pass_editor.h"
#include "server/model/rotary.h"
#include "server/model/taps.h"
#include "server/model/unembedding.h"

namespace hookline {

class Decoder : public Model {
 public:
  // `weights` lie on the model's device in its dtype, embedding tables and norm weights as decoder_weights.h says.
  // `info` has everything but what the configuration tells.
  Decoder(ModelInfo info, DecoderConfig config, DecoderWeights weights, at::ScalarType dtype);

  absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                       absl::Span<const int> hook_points, Tap tap) override;
  absl::Status Evaluate(const at::Tensor& token_ids, absl::Span<const int64_t> lengths, PassEditor& editor) override;
  int64_t blocks_executed() const override { return blocks_executed_; }

 private:
  // The terms of a block's input beside the block before it: x = residual x + embedding x0 + bigram b.
  struct Inputs {
    double residual = 1, embedding = 0, bigram = 0;
  };

  // `editor`: null where the batch stays as it is and no logits are wanted.
  absl::Status RunAll(PassState from, Taps& taps, PassEditor* editor);
  // Offers `editor`, if there is one, the state before `layer`, and lets it choose the sequences with which the pass
  // goes on. What `pass` has of the state is not in `state`.
  void Enter(int layer, PassEditor* editor, ForwardPass* pass, PassState* state);
  void Fork(const std::vector<int64_t>& chosen, ForwardPass* pass, PassState* state);

  // Each returns whether the last hook point was tapped, after which nothing more is computed.
  bool Run(PassState state, Taps& taps, PassEditor* editor);
  bool Embed(const at::Tensor& token_ids, Taps& taps, at::Tensor* x, at::Tensor* per_layer);
  at::Tensor EmbedBigrams(const at::Tensor& token_ids) const;

  const DecoderConfig config_;
  DecoderWeights weights_;  // those of the layers are with their blocks
  const at::ScalarType dtype_;
  Rotary rotary_;
  CausalMasks masks_;
  int embed_hook_ = kNoHookPoint, position_embed_hook_ = kNoHookPoint;
  std::vector<Inputs> inputs_;    // by layer
  bool reads_embedding_ = false;  // a later block's input has a term of it
  std::vector<Block> blocks_;
  std::unique_ptr<NormPlace> ln_final_;
  const Unembedding unembedding_;
  std::atomic<int64_t> blocks_executed_{0};
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_H_
