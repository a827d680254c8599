// The names that checkpoints of one architecture have for their weights, and what they hold besides those.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_

#include <string>
#include <vector>

#include "server/model/load/state_dict.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

// Gives the weights the names under which the whole causal model was published, which is what families ask for. A
// checkpoint of the model without its head (AutoModel.save_pretrained) has no prefix `model.` or `gpt_neox.`; a
// language model out of a larger one may have `language_model.` in it.
void UnifyNames(StateDict* weights);

// Ignores what activations do not depend on: heads for other ends (score, v_head, classifier, qa_outputs) and buffers
// of integers (masks, positions). "" or a text that names what was left out, for people. Call it once all else is
// taken.
std::string IgnoreOtherHeads(WeightTaker& take);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_WEIGHT_NAMES_H_
