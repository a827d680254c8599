// Reads dictionaries that EleutherAI's sparsify saved: a directory with cfg.json and sae.safetensors.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_SPARSIFY_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_SPARSIFY_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {

// Returns whether `folder` holds both files.
bool IsSparsifyFolder(const std::string& folder);

// Reads autoencoders with top-k. The hook point follows from a directory's name of the form `layers.N` or
// `layers.N.mlp`. FAILED_PRECONDITION names the file and the field or weight that is not understood.
absl::StatusOr<std::shared_ptr<const Dictionary>> ReadSparsify(const std::string& name, const std::string& folder,
                                                               at::Device device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_SPARSIFY_H_
