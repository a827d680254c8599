// The names of weights in checkpoints of one architecture, and the tensors that are not part of the model.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_

#include <string>
#include <vector>

#include "server/model/load/state_dict.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

// Gives the weights the names under which the whole causal model was published, which the families expect. A checkpoint
// of the model without its head (AutoModel.save_pretrained) lacks the prefix `model.` or `gpt_neox.`; a language model
// from a larger one can have `language_model.` in its names.
void UnifyNames(StateDict* weights);

// Ignores tensors that do not affect activations: heads for other purposes (score, v_head, classifier, qa_outputs) and
// integer buffers (masks, positions). Returns a text that names them, or "" if there are none. Call it after everything
// else is taken.
std::string IgnoreOtherHeads(WeightTaker& take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_
