// Reads dictionaries that Gemma Scope published: params.npz, in a directory whose path describes it.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_GEMMA_SCOPE_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_GEMMA_SCOPE_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {

// Returns whether `path` is an .npz file or a folder that holds params.npz.
bool IsGemmaScope(const std::string& path);

// Reads a JumpReLU autoencoder. The hook point follows from the path, as in SAELens, if it has both the repository
// (`gemma-scope-2b-pt-res`, `-mlp`, `-att`) and `layer_N`. FAILED_PRECONDITION names the file and the array that is not
// understood. Transcoders, and autoencoders of the embedding, whose rows are scaled, are refused too.
absl::StatusOr<std::shared_ptr<const Dictionary>> ReadGemmaScope(const std::string& name, const std::string& path,
                                                                 at::Device device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_GEMMA_SCOPE_H_
