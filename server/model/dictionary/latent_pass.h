// One forward pass for some latents of one dictionary. Free of LibTorch, so that the engine can call it.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_PASS_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_PASS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/model/model.h"

namespace hookline {

// Returns the values of `latents` of the model's dictionary number `dictionary` at each token of `sequences`: (latents,
// sequences, positions), row-major. `sequences` are checked, at least one, and of one length. The pass ends at the hook
// point that the dictionary encodes. Errors: those of Model::Forward.
absl::StatusOr<std::vector<float>> RunLatentPass(Model& model, absl::Span<const std::vector<uint32_t>> sequences,
                                                 int dictionary, absl::Span<const int64_t> latents);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_PASS_H_
