// A sparse dictionary: encodes a row into latents of which few are not zero, and decodes them.
//
//   z = normalise(x) - b_dec (where the dictionary subtracts it)
//   pre = z W_enc + b_enc                                    hook_sae_acts_pre (latents)
//   post = activation(pre)                                   hook_sae_acts_post (latents)
//   r = post W_dec + b_dec                                   hook_sae_recons (width)
//   reconstruction = undo the normalisation of r;            hook_sae_error = x - reconstruction
// Everything is computed in float32, as the libraries' objects do in their own dtype.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "server/model/dictionary/dictionary_info.h"
#include "server/model/dictionary/latent_edit.h"

namespace hookline {

struct DictionaryConfig {
  enum class Activation {
    kRelu,
    kJumpRelu,  // relu(pre) where pre > threshold
    kTopK,      // relu of the k largest
    kGated,     // relu(pre) where the gate z W_enc + b_gate > 0, with pre = z (W_enc exp(r_mag)) + b_mag
  };
  enum class Normalization {
    kNone,
    kLayerNorm,     // (x - mean) / (deviation + 1e-5), the deviation with n - 1
    kConstantNorm,  // x sqrt(width) / |x|
  };
  Activation activation = Activation::kRelu;
  Normalization normalization = Normalization::kNone;
  bool subtracts_decoder_bias = true;
  // The latents are chosen, and are, times their decoder rows' lengths.
  bool scales_by_decoder_norm = false;
  int64_t k = 0;  // kTopK
};

// All are float32, on the model's device.
struct DictionaryWeights {
  at::Tensor encoder;       // (width, latents)
  at::Tensor encoder_bias;  // (latents); kGated: b_mag
  at::Tensor decoder;       // (latents, width)
  at::Tensor decoder_bias;  // (width)
  at::Tensor threshold;     // (latents), kJumpRelu
  at::Tensor gate_bias;     // (latents), kGated
  at::Tensor magnitude;     // (latents), kGated: exp(r_mag)
};

// Immutable, so thread-safe.
class Dictionary {
 public:
  Dictionary(DictionaryInfo info, DictionaryConfig config, DictionaryWeights weights)
      : info_(std::move(info)), config_(config), weights_(std::move(weights)) {}

  const DictionaryInfo& info() const { return info_; }

  // Returns what the dictionary computes of rows (n, width) at `point`, in the rows' dtype.
  at::Tensor Compute(DictionaryPoint point, const at::Tensor& rows) const;

  // The reconstruction of rows (n, width), with `edits` made to the latents, in float32; with `keeps_error` what the
  // reconstruction without edits leaves of the rows is added. `active`, (n): latents that are not zero after the edits.
  // Latents take memory for some rows at a time only.
  at::Tensor Reconstruct(const at::Tensor& rows, const std::vector<LatentEdit>& edits, bool keeps_error,
                         at::Tensor* active) const;

 private:
  // Rows between normalisation and its undoing.
  struct Normalized {
    at::Tensor rows;   // less the decoder's bias where the dictionary subtracts it
    at::Tensor shift;  // (n, 1), undefined where there is none
    at::Tensor scale;  // (n, 1), undefined where there is none
  };

  Normalized Normalize(const at::Tensor& rows) const;
  at::Tensor PreActivations(const at::Tensor& normalized) const;
  at::Tensor Activations(const at::Tensor& normalized, const at::Tensor& pre) const;
  at::Tensor Decode(const at::Tensor& latents) const;
  static at::Tensor Restore(const at::Tensor& decoded, const Normalized& normalized);

  const DictionaryInfo info_;
  const DictionaryConfig config_;
  const DictionaryWeights weights_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_
