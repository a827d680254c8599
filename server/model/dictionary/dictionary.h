// A sparse dictionary: encodes a row into latents of which few are not zero, and decodes them.
//
//   z = normalise(x) - b_dec (where the dictionary subtracts it)
//   pre = z W_enc + b_enc                                    hook_sae_acts_pre (latents)
//   post = activation(pre)                                   hook_sae_acts_post (latents)
//   r = post W_dec + b_dec                                   hook_sae_recons (width)
//   reconstruction = undo the normalisation of r;            hook_sae_error = x - reconstruction
// A transcoder's rows are those of another hook point, y:
//   reconstruction = r, or r + x W_skip of a skip transcoder;   hook_sae_error = y - reconstruction
// Everything is computed in float32, as the libraries' objects do in their own dtype.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
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
  bool is_transcoder = false;
  int64_t k = 0;  // kTopK
};

// All are float32, on the model's device.
struct DictionaryWeights {
  at::Tensor encoder;       // (width, latents)
  at::Tensor encoder_bias;  // (latents); kGated: b_mag
  at::Tensor decoder;       // (latents, output_width)
  at::Tensor decoder_bias;  // (output_width)
  at::Tensor skip;          // (output_width, width), of a skip transcoder
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
  // Returns the part of a hook point's rows, whose last axis holds their values, that the dictionary encodes: a view.
  at::Tensor PartOf(const at::Tensor& rows) const;

  using Visit = absl::FunctionRef<void(DictionaryPoint point, const at::Tensor& values)>;
  // Calls `visit` with what the dictionary computes of rows (n, width) at each of `points`, ascending and not kError,
  // in `dtype`. Every stage is computed once, and takes memory for some rows at a time besides what is visited.
  void Compute(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, at::ScalarType dtype,
               Visit visit) const;
  // Returns what the reconstruction of `rows` leaves of `outputs`, (n, output_width), in their dtype: kError. Of an
  // autoencoder they are the same.
  at::Tensor Error(const at::Tensor& rows, const at::Tensor& outputs) const;

  // Returns what these of the latents, int64 indices on the device, are of rows (n, width): (n, latents), as Compute
  // gives them in the rows' dtype, in float32. Latents take memory for some rows at a time only.
  at::Tensor Latents(const at::Tensor& rows, const at::Tensor& latents) const;

  // The reconstruction of rows (n, width), with `edits` made to the latents, in float32. `outputs`: where the error is
  // kept, the rows that it replaces, (n, output_width): what the reconstruction without edits leaves of them is added;
  // otherwise undefined. `active`, (n): latents that are not zero after the edits. Latents take memory for some rows at
  // a time only.
  at::Tensor Reconstruct(const at::Tensor& rows, const std::vector<LatentEdit>& edits, const at::Tensor& outputs,
                         at::Tensor* active) const;

 private:
  // Rows between normalisation and its undoing.
  struct Normalized {
    at::Tensor rows;   // less the decoder's bias where the dictionary subtracts it
    at::Tensor shift;  // (n, 1), undefined where there is none
    at::Tensor scale;  // (n, 1), undefined where there is none
  };

  // Rows of which the latents fit into memory at a time.
  int64_t RowsAtATime() const;
  // These of the latents alone, which an activation function needs that looks at each by itself.
  Dictionary Only(const at::Tensor& latents) const;
  Normalized Normalize(const at::Tensor& rows) const;
  at::Tensor PreActivations(const at::Tensor& normalized) const;
  at::Tensor Activations(const at::Tensor& normalized, const at::Tensor& pre) const;
  at::Tensor Decode(const at::Tensor& latents) const;
  // Compute of rows of which the latents fit into memory.
  void ComputePiece(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, Visit visit) const;
  // From what is decoded of rows to their reconstruction.
  at::Tensor Restore(const at::Tensor& decoded, const at::Tensor& rows, const Normalized& normalized) const;

  const DictionaryInfo info_;
  const DictionaryConfig config_;
  const DictionaryWeights weights_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_
