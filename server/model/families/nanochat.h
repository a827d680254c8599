// Loads nanochat checkpoints (github.com/karpathy/nanochat) of every form that its main branch has written since
// October 2025.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_NANOCHAT_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_NANOCHAT_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/load.h"
#include "server/model/model.h"

namespace hookline {

// Returns whether `folder` holds a model_NNNNNN.pt.
bool IsNanochatFolder(const std::string& folder);

// Returns the bytes that the weights of the checkpoint that LoadNanochat would load will take, in
// `dtype`, on the devices that `stages` names. Reads only the files' descriptions of the weights, and
// refuses what LoadNanochat refuses.
absl::StatusOr<std::vector<MemoryNeed>> CountNanochat(const ModelOptions& options, std::vector<Stage> stages,
                                                      at::ScalarType dtype);

// Loads model_NNNNNN.pt and meta_NNNNNN.json of options.path, of step options.step or of the highest step. `info` holds
// what is already known (name, device, dtype). `stages` names the devices of the stages, at least one, and is
// completed. Errors: those of LoadModel.
//
// The forms, or eras, and what distinguishes them (x' means x with padded tables):
//   A, A'   no per-layer scalars                       rope base 10000, no windows
//   B       resid_lambdas, x0_lambdas                  the same
//   C       B with window_pattern                      windows: S sequence_len / 2, L sequence_len
//   E or G  ve_gate of 32 channels                     value embeddings; G differs in the logits only
//   F       E with bigram_lambdas                      hashed bigram embedding
//   H       ve_gate of 12 channels                     rope base 100000, q and k x 1.15, S a third
//   I       smear_lambda                               smear, backout, q and k x 1.2, S a quarter
// D (v0_lambdas) and mixtures of experts are refused.
absl::StatusOr<std::unique_ptr<Model>> LoadNanochat(const ModelOptions& options, ModelInfo info, at::ScalarType dtype,
                                                    std::vector<Stage>* stages);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_NANOCHAT_H_
