// A forward pass over sequences and variants of it: the losses, and how the variants change them. Free of LibTorch, so
// that the engine can call it.
//
//   ScoreInput input{sequences, variants, outputs};
//   ASSIGN_OR_RETURN(const std::unique_ptr<ScorePass> pass, ScorePass::Make(model, input));
//   RETURN_IF_ERROR(pass->Run());
//   while (!pass->asked.empty()) {  // only for interventions that are kClient
//     ...                           // put the answers in place of the rows that are asked for
//     RETURN_IF_ERROR(pass->Run());
//   }
//   pass->scores[0]  // the pass without interventions; scores[1 + v] belongs to variants[v]
#ifndef HOOKLINE_SERVER_MODEL_EVALUATION_SCORE_PASS_H_
#define HOOKLINE_SERVER_MODEL_EVALUATION_SCORE_PASS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/model/evaluation/intervention.h"
#include "server/model/model.h"

namespace hookline {

// The outputs that are wanted of each sequence under each variant.
struct ScoreOutputs {
  bool rows_only = false;   // no logits are computed; the pass ends at the deepest of `hook_points`
  bool token_loss = false;  // the loss of each token, beside their sum
  bool kl = false;
  int top_logits = 0;                    // the number of them at each position; 0: none
  std::vector<uint32_t> probability_of;  // token ids whose log-probability is wanted at each position
  std::vector<int> hook_points;          // of the model, ascending and unique; rows are returned after interventions
};

struct TopLogits {
  std::vector<uint32_t> ids;  // the largest logit first
  std::vector<float> logits;
  std::vector<float> log_probabilities;
};

// One sequence of T tokens under one variant.
struct SequenceScore {
  double loss_sum = 0;                   // over T - 1 predictions
  std::vector<float> token_loss;         // (T - 1): entry t is -log p(token t + 1)
  double kl_sum = 0;                     // over T positions
  std::vector<float> kl;                 // (T): sum of p log(p / q), with p of the clean pass; empty for the clean pass
  std::vector<TopLogits> top_logits;     // (T)
  std::vector<float> log_probabilities;  // (T, probability_of), row-major
  std::vector<std::vector<float>> rows;  // by outputs.hook_points: (T, width), row-major
};

// Sums over the rows x that one intervention replaced by y. The sums of several passes can be added.
struct ReplacedRows {
  int64_t rows = 0;
  double squared_error = 0;  // of (x - y)^2, all values
  double squares = 0;        // of x^2, all values
  std::vector<double> sum;   // of x, by value
  double cosine_similarity = 0;
  double active_latents = 0;  // kDictionary, kLatents: latents that are not zero

  void Add(const ReplacedRows& other);
  // Returns 1 - sum (x - y)^2 / sum (x - mean x)^2, with a mean for each value of a row; NaN where the x do not vary.
  double ExplainedVariance() const;
};

struct VariantScores {
  std::vector<SequenceScore> sequences;
  std::vector<ReplacedRows> replaced;  // by intervention
};

struct ScoreInput {
  absl::Span<const std::vector<uint32_t>> sequences;  // checked; at least one
  absl::Span<const Variant* const> variants;
  const ScoreOutputs* outputs = nullptr;
};

// Rows of a sequence that a client replaces (Intervention::Operation::kClient).
struct AskedRows {
  size_t sequence = 0;      // index into ScoreInput::sequences
  size_t variant = 0;       // index into ScoreInput::variants
  size_t intervention = 0;  // index into the variant's interventions
  std::vector<float> rows;  // (T, width of the intervention), row-major; the client's answer takes their place
  std::vector<bool> mask;   // (T), set with the answer: which of its rows replace the model's
};

// Blocks before a variant's first intervention are computed once, for all variants. From that block on the variant is
// part of the batch.
//
// At each hook point with interventions that are kClient, in the order of computation, the pass pauses: Run returns,
// and the device can run anything else. The pass keeps the state before the block with the hook point, for the variants
// that are in the batch by then. The block's part up to the hook point is computed again.
//
// Run is called by the model's executor; between its calls any one thread may use and destroy the pass.
class ScorePass {
 public:
  // `model` and what `input` refers to outlive the pass. Errors: those of Model::Evaluate.
  static absl::StatusOr<std::unique_ptr<ScorePass>> Make(Model& model, const ScoreInput& input);
  virtual ~ScorePass() = default;

  // Runs to the next hook point that needs answers, or to the end. After an error the pass cannot be used again.
  // Errors: those of Model::Evaluate.
  virtual absl::Status Run() = 0;

  std::vector<AskedRows> asked;  // what the next Run needs; empty after the end
  std::vector<VariantScores> scores;
};

// Runs a pass without a pause, for variants without kClient.
absl::StatusOr<std::vector<VariantScores>> RunScorePass(Model& model, const ScoreInput& input);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_EVALUATION_SCORE_PASS_H_
