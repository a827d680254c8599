// Reads dictionaries that SAELens saved: a directory with cfg.json and sae_weights.safetensors.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_SAE_LENS_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_SAE_LENS_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {

// Returns whether `folder` holds both files.
bool IsSaeLensFolder(const std::string& folder);

// Reads the architectures standard, gated, jumprelu and topk, of SAELens 6 and of the versions before it (batchtopk and
// matryoshka dictionaries are saved as jumprelu), and its transcoders, with and without JumpReLU and skip connection.
// FAILED_PRECONDITION names the file and the field or weight that is not understood.
absl::StatusOr<std::shared_ptr<const Dictionary>> ReadSaeLens(const std::string& name, const std::string& folder,
                                                              at::Device device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_SAE_LENS_H_
