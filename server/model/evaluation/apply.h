// Computes interventions on rows.
#ifndef HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_
#define HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_

#include <ATen/ATen.h>

#include "server/model/evaluation/intervention.h"
#include "server/model/evaluation/score_pass.h"
#include "server/model/model.h"

namespace hookline {

// The tokens of a batch, each (B, T), on the device of its rows.
struct BatchTokens {
  at::Tensor ids;
  at::Tensor valid;  // bool: true where the token is not padding
};

// Inputs that only some interventions need beside their own values, on the rows' device; undefined for the others.
struct GivenRows {
  at::Tensor rows;   // kClient: the client's rows, (B, T, width), float32
  at::Tensor mask;   // kClient: where they replace the model's rows, (B, T), bool
  at::Tensor input;  // transcoders: the rows that it reads, (B, T, its width)
};

// Replaces x (B, T, width), a view of rows that can be written to, as `intervention` says, and adds the changes of
// tokens that are not padding to `replaced`. `model` provides the hook point's heads and the dictionaries.
void Apply(const Intervention& intervention, const Model& model, const BatchTokens& tokens, at::Tensor x,
           const GivenRows& given, ReplacedRows* replaced);

// The part of x (B, T, width) that the intervention replaces, all of it or one head's, as a view.
at::Tensor PartOf(const Intervention& intervention, const Model& model, const at::Tensor& x);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_EVALUATION_APPLY_H_
