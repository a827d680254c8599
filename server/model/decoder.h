// The forward pass of a decoder-only transformer, driven by its configuration.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_H_
#define HOOKLINE_SERVER_MODEL_DECODER_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "server/model/attention/attend.h"
#include "server/model/block.h"
#include "server/model/decoder_config.h"
#include "server/model/decoder_weights.h"
#include "server/model/forward_pass.h"
#include "server/model/model.h"
#include "server/model/pass_editor.h"
#include "server/model/rotary.h"
#include "server/model/stage.h"
#include "server/model/taps.h"
#include "server/model/unembedding.h"

namespace hookline {

class Decoder : public Model {
 public:
  // `weights` lie on the model's device in its dtype, embedding tables and norm weights as decoder_weights.h says.
  // If there are stages, which together have all blocks, the weights of a block lie on the device of its stage, those
  // used before the blocks on the first, info.device, and those used after them on the last. `info` has everything but
  // what the configuration tells.
  Decoder(ModelInfo info, DecoderConfig config, DecoderWeights weights, at::ScalarType dtype,
          const std::vector<Stage>& stages = {});

  absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                       absl::Span<const int> hook_points, Tap tap) override;
  absl::Status Evaluate(const at::Tensor& token_ids, absl::Span<const int64_t> lengths, PassEditor& editor) override;
  int64_t blocks_executed() const override { return blocks_executed_; }

  enum class Sharing {
    kReplica,   // computes independently of this one
    kPipeline,  // takes turns with this one: at any time, one of them computes a stage
  };
  // Makes a model for another thread, on the same devices, that uses this model's weights without copying them.
  std::unique_ptr<Decoder> Share(Sharing sharing) const;

 private:
  // A stage as this model computes it. Each model has its own tables and masks, since no lock guards them.
  struct OwnStage {
    int end = 0;  // the block after its last
    at::Device device;
    Rotary rotary;
    CausalMasks masks;
    // Held while the stage is computed or, on an accelerator, launched. It guards no data: models that share a pipeline
    // take turns at the stage by it.
    std::shared_ptr<std::mutex> turn;
  };

  // The terms of a block's input beside the block before it: x = residual x + embedding x0 + bigram b.
  struct Inputs {
    double residual = 1, embedding = 0, bigram = 0;
  };

  // `editor` is null if the batch stays unchanged and no logits are needed.
  absl::Status RunAll(PassState from, Taps& taps, PassEditor* editor);
  // Makes a model that shares the other's weights.
  Decoder(const Decoder& other, Sharing sharing);
  void AddStage(size_t end, at::Device device);

  // The state of a pass between two stages.
  struct Progress {
    size_t stage = 0;
    std::unique_lock<std::mutex> turn;
    std::optional<ForwardPass> pass;
    PassState state;  // without the fields that `pass` holds
  };
  // Waits for the turn at progress->stage and moves the pass to its device.
  void EnterStage(Taps& taps, Progress* progress);
  // If there is an editor, offers it the state before `layer` and lets it choose the sequences with which the
  // pass goes on.
  void Enter(int layer, PassEditor* editor, Progress* progress);
  void Fork(const std::vector<int64_t>& chosen, Progress* progress);

  // Each returns true if the last hook point was tapped; the pass then ends.
  bool Run(PassState state, Taps& taps, PassEditor* editor);
  bool Embed(const at::Tensor& token_ids, Taps& taps, at::Tensor* x, at::Tensor* per_layer);
  at::Tensor EmbedBigrams(const at::Tensor& token_ids) const;

  const DecoderConfig config_;
  DecoderWeights weights_;  // the blocks hold those of the layers
  const at::ScalarType dtype_;
  std::vector<OwnStage> stages_;  // at least one
  int embed_hook_ = kNoHookPoint, position_embed_hook_ = kNoHookPoint;
  std::vector<Inputs> inputs_;    // by layer
  bool reads_embedding_ = false;  // whether a block's input has the embedding as a term
  std::shared_ptr<const std::vector<Block>> blocks_;
  std::shared_ptr<const NormPlace> ln_final_;
  const Unembedding unembedding_;
  std::atomic<int64_t> blocks_executed_{0};
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_H_
