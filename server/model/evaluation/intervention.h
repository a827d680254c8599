// An intervention: a replacement of a hook point's rows during a forward pass. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_EVALUATION_INTERVENTION_H_
#define HOOKLINE_SERVER_MODEL_EVALUATION_INTERVENTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "server/model/dictionary/latent_edit.h"

namespace hookline {

// In the formulas, x is a row, or one head's part of it.
struct Intervention {
  enum class Operation {
    kZero,        // 0
    kMean,        // vector
    kBatchMean,   // the mean of x over all tokens of all sequences of the pass
    kAdd,         // x + factor vector
    kScale,       // factor x
    kProjectOut,  // x - (x . vector / vector . vector) vector
    kSet,         // the one row in `vector`, or row i of it at positions[i]
    kDictionary,  // the reconstruction by a dictionary
    kLatents,     // the reconstruction, with some latents changed
    kClient,      // rows that a client sends while the pass waits; at most once for a hook point of a variant
  };

  int hook_point = 0;  // index into Model::hook_points()
  Operation operation = Operation::kZero;
  std::vector<float> vector;  // as wide as x; kSet: one or more such rows
  double factor = 1;
  // kDictionary, kLatents.
  int dictionary = -1;            // index into Model::dictionaries()
  std::vector<LatentEdit> edits;  // kLatents
  bool keeps_error = false;       // kLatents: adds the error of the reconstruction without edits
  // The places where the intervention applies, which must meet all of these conditions.
  std::vector<int64_t> positions;           // ascending; empty: all
  std::vector<uint32_t> ignored_token_ids;  // tokens with these ids are left alone
  int head = -1;                            // -1: the whole row
};

// A forward pass with interventions. Those of one hook point are applied in their order.
struct Variant {
  std::string name;
  std::vector<Intervention> interventions;  // at least one
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_EVALUATION_INTERVENTION_H_
