// Reads dictionaries that dictionary_learning saved: a directory with config.json and ae.pt.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_LEARNING_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_LEARNING_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {

// Returns whether `folder` holds both files.
bool IsDictionaryLearningFolder(const std::string& folder);

// Reads AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE and
// MatryoshkaBatchTopKSAE (all its groups), as the library's load_dictionary does. The hook point follows from a
// `submodule_name` of the form `resid_post_layer_N`. FAILED_PRECONDITION names the file and the field or weight that is
// not understood.
absl::StatusOr<std::shared_ptr<const Dictionary>> ReadDictionaryLearning(const std::string& name,
                                                                         const std::string& folder, at::Device device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_LEARNING_H_
