// Interventions as arithmetic on rows.
#ifndef HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_
#define HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_

#include <ATen/ATen.h>

#include "server/model/evaluation/intervention.h"
#include "server/model/evaluation/score_pass.h"
#include "server/model/model.h"

namespace hookline {

// The tokens of a batch, (B, T) each, on the device of the rows that they are for.
struct BatchTokens {
  at::Tensor ids;
  at::Tensor valid;  // bool: not padding
};

// Holds what some interventions need beside their own values, on the rows' device; undefined for the others.
struct GivenRows {
  at::Tensor rows;   // kClient: what the client answered, (B, T, width), float32
  at::Tensor mask;   // kClient: where they replace the model's, (B, T), bool
  at::Tensor input;  // a transcoder's: the rows that it reads, (B, T, its width)
};

// Replaces x (B, T, width), a view of rows that may be written to, as `intervention` says, and counts in `replaced`
// what it did to tokens that are not padding. `model` knows the hook point's heads and the dictionaries.
void Apply(const Intervention& intervention, const Model& model, const BatchTokens& tokens, at::Tensor x,
           const GivenRows& given, ReplacedRows* replaced);

// The part of x (B, T, width) that the intervention replaces: all of it or one head's. A view.
at::Tensor PartOf(const Intervention& intervention, const Model& model, const at::Tensor& x);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_
