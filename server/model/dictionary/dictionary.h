// A sparse dictionary: encodes a row into latents, of which only few are not zero, and decodes the latents.
//
//   z = normalise(x) - b_dec (where the dictionary subtracts it)
//   pre = z W_enc + b_enc                                    hook_sae_acts_pre (latents)
//   post = activation(pre)                                   hook_sae_acts_post (latents)
//   r = post W_dec + b_dec                                   hook_sae_recons (width)
//   reconstruction = undo the normalisation of r;            hook_sae_error = x - reconstruction
// A transcoder's rows are those of another hook point, y:
//   reconstruction = r, or r + x W_skip of a skip transcoder;   hook_sae_error = y - reconstruction
// Everything is computed in float32, while the libraries compute in the dtype of their objects.
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
  // The latents are multiplied by the lengths of their decoder rows, and chosen by the product.
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
  at::Tensor skip;          // (output_width, width); skip transcoders only
  at::Tensor threshold;     // (latents), kJumpRelu
  at::Tensor gate_bias;     // (latents), kGated
  at::Tensor magnitude;     // (latents), kGated: exp(r_mag)
};

// Immutable and therefore thread-safe.
class Dictionary {
 public:
  Dictionary(DictionaryInfo info, DictionaryConfig config, DictionaryWeights weights)
      : info_(std::move(info)), config_(config), weights_(std::move(weights)) {}

  const DictionaryInfo& info() const { return info_; }
  // Returns the part of a hook point's rows, whose last axis holds their values, that the dictionary encodes: a view.
  at::Tensor PartOf(const at::Tensor& rows) const;

  using Visit = absl::FunctionRef<void(DictionaryPoint point, const at::Tensor& values)>;
  // Calls `visit` with the dictionary's values for rows (n, width) at each of `points`, ascending and not kError, in
  // `dtype`. Each stage is computed once. Beside the visited values, memory holds those of some rows at a time.
  void Compute(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, at::ScalarType dtype,
               Visit visit) const;
  // Returns `outputs` minus the reconstruction of `rows`, (n, output_width), in the dtype of `outputs`: kError. For an
  // autoencoder, `rows` and `outputs` are the same.
  at::Tensor Error(const at::Tensor& rows, const at::Tensor& outputs) const;

  // Returns the values of `latents`, int64 indices on the device, for rows (n, width): (n, latents) float32, rounded to
  // the dtype of `rows` as in Compute. Memory holds the latents of some rows at a time.
  at::Tensor Latents(const at::Tensor& rows, const at::Tensor& latents) const;

  // Returns the reconstruction of rows (n, width), in float32, with `edits` made to the latents. If `outputs` (n,
  // output_width) is defined, it holds the rows that are replaced, and the error that the reconstruction without edits
  // makes on them is added. Sets `active`, (n), to the number of latents that are not zero after the edits. Memory
  // holds the latents of some rows at a time.
  at::Tensor Reconstruct(const at::Tensor& rows, const std::vector<LatentEdit>& edits, const at::Tensor& outputs,
                         at::Tensor* active) const;

 private:
  // Normalised rows, and what undoes the normalisation.
  struct Normalized {
    at::Tensor rows;   // minus the decoder's bias where the dictionary subtracts it
    at::Tensor shift;  // (n, 1), undefined where there is none
    at::Tensor scale;  // (n, 1), undefined where there is none
  };

  // The number of rows whose latents are in memory at a time.
  int64_t RowsAtATime() const;
  // A dictionary with these latents only; valid for activation functions that look at each latent separately.
  Dictionary Only(const at::Tensor& latents) const;
  Normalized Normalize(const at::Tensor& rows) const;
  at::Tensor PreActivations(const at::Tensor& normalized) const;
  at::Tensor Activations(const at::Tensor& normalized, const at::Tensor& pre) const;
  at::Tensor Decode(const at::Tensor& latents) const;
  // The same as Compute, for rows whose latents fit into memory.
  void ComputePiece(absl::Span<const DictionaryPoint> points, const at::Tensor& rows, Visit visit) const;
  // Turns the decoded `rows` into their reconstruction.
  at::Tensor Restore(const at::Tensor& decoded, const at::Tensor& rows, const Normalized& normalized) const;

  const DictionaryInfo info_;
  const DictionaryConfig config_;
  const DictionaryWeights weights_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_H_
