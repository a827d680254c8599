// The forward pass of a decoder-only transformer, driven by its configuration.
#ifndef HOOKLINE_SERVER_MODEL_DECODER_H_
#define HOOKLINE_SERVER_MODEL_DECODER_H_

#include <atomic>
#include <memory>

#include "server/model/attention.h"
#include "server/model/decoder_config.h"
#include "server/model/decoder_hook_points.h"
#include "server/model/decoder_weights.h"
#include "server/model/model.h"

namespace hookline {

class Decoder : public Model {
 public:
  // `weights` lie on the model's device in its dtype, embedding tables and norm weights as decoder_weights.h says.
  // `info` has everything but what the configuration tells.
  Decoder(ModelInfo info, DecoderConfig config, DecoderWeights weights, at::ScalarType dtype);

  absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int> hook_points, Tap tap) override;
  int64_t blocks_executed() const override { return blocks_executed_; }

 private:
  class Taps;

  // Each returns whether the last hook point was tapped, after which nothing more is computed.
  bool Run(const at::Tensor& token_ids, Taps& taps);
  bool Embed(const at::Tensor& token_ids, Taps& taps, at::Tensor* x);
  at::Tensor EmbedBigrams(const at::Tensor& token_ids) const;
  bool Block(int layer, const at::Tensor& token_ids, Taps& taps, at::Tensor* x);
  at::Tensor Values(const LayerWeights& layer, const at::Tensor& token_ids, const at::Tensor& h,
                    const at::Tensor& v) const;
  bool Attention(int layer, const at::Tensor& token_ids, const at::Tensor& x, Taps& taps, at::Tensor* out);
  bool Mlp(int layer, const at::Tensor& x, Taps& taps, at::Tensor* out);

  const DecoderConfig config_;
  const DecoderWeights weights_;
  const DecoderHookPoints hooks_;
  const at::ScalarType dtype_;
  RotaryTables rotary_;
  CausalMasks masks_;
  std::atomic<int64_t> blocks_executed_{0};
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DECODER_H_
