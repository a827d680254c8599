#include "server/model/evaluation/score_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "server/base/status.h"
#include "server/model/catch_torch.h"
#include "server/model/dictionary/dictionary_taps.h"
#include "server/model/evaluation/apply.h"
#include "server/model/pass_editor.h"

namespace hookline {
namespace {

// Limits the bytes of logits that are computed at a time, for each of the two passes that are compared: those of a
// whole batch with a vocabulary of 256 k would take gigabytes.
constexpr int64_t kLogitBytes = int64_t{32} << 20;

// (batch, positions), padded with 0 on the right.
at::Tensor PaddedIds(absl::Span<const std::vector<uint32_t>> sequences, int64_t positions) {
  at::Tensor ids = at::zeros({static_cast<int64_t>(sequences.size()), positions}, at::kLong);
  int64_t* row = ids.data_ptr<int64_t>();
  for (const std::vector<uint32_t>& sequence : sequences) {
    std::copy(sequence.begin(), sequence.end(), row);
    row += positions;
  }
  return ids;
}

std::vector<float> ToHost(const at::Tensor& values) {
  const at::Tensor host = values.to(at::kFloat).cpu().contiguous();
  const float* data = host.data_ptr<float>();
  return {data, data + host.numel()};
}

std::set<int> ReplacingDictionaries(absl::Span<const Variant* const> variants) {
  std::set<int> replacing;
  for (const Variant* variant : variants) {
    for (const Intervention& one : variant->interventions) {
      if (one.dictionary >= 0) replacing.insert(one.dictionary);
    }
  }
  return replacing;
}

class PausingPass final : public ScorePass, private PassEditor {
 public:
  PausingPass(Model& model, const ScoreInput& input)
      : model_(model),
        input_(input),
        taps_(model.dictionaries(), input.outputs->hook_points, ReplacingDictionaries(input.variants)) {
    for (const std::vector<uint32_t>& sequence : input.sequences) {
      lengths_.push_back(static_cast<int64_t>(sequence.size()));
    }
    positions_ = *std::max_element(lengths_.begin(), lengths_.end());
    const int64_t sequences = static_cast<int64_t>(input.sequences.size());
    const at::Tensor ids = PaddedIds(input.sequences, positions_);
    at::Tensor valid = at::zeros({sequences, positions_}, at::kBool);
    for (int64_t i = 0; i < sequences; ++i) valid[i].narrow(0, 0, lengths_[static_cast<size_t>(i)]).fill_(true);
    tokens_ = {ids, valid};
    std::set<int> points(taps_.computed().begin(), taps_.computed().end()), pauses;
    for (const Variant* variant : input.variants) {
      int first = std::numeric_limits<int>::max();
      for (const Intervention& intervention : variant->interventions) {
        points.insert(intervention.hook_point);
        first = std::min(first, intervention.hook_point);
        if (intervention.operation == Operation::kClient) pauses.insert(intervention.hook_point);
      }
      first_point_.push_back(first);
    }
    all_points_.assign(points.begin(), points.end());
    pauses_.assign(pauses.begin(), pauses.end());
    scores.resize(1 + input.variants.size());
    for (size_t s = 0; s < scores.size(); ++s) {
      scores[s].sequences.resize(input.sequences.size());
      for (SequenceScore& score : scores[s].sequences) score.rows.resize(input.outputs->hook_points.size());
      if (s > 0) scores[s].replaced.resize(input.variants[s - 1]->interventions.size());
    }
  }

  absl::Status Run() override {
    absl::Status status = CatchTorch([&] {
      c10::InferenceMode inference;
      TakeAnswers();
      if (state_.has_value()) GoBackToState();
      ChoosePoints();
      return model_.Evaluate(TokensOn(at::Device(model_.info().device)).ids, lengths_, *this);
    });
    if (!status.ok() || pauses_.empty()) return status;
    pauses_.erase(pauses_.begin());
    // Drops the answers for blocks that do not run again.
    for (auto it = answers_.begin(); it != answers_.end();) {
      const auto [variant, intervention] = it->first;
      const int point = input_.variants[variant]->interventions[intervention].hook_point;
      it = LayerOf(point) < state_->layer ? answers_.erase(it) : std::next(it);
    }
    return status;
  }

 private:
  using Operation = Intervention::Operation;

  absl::Span<const int> hook_points() const override { return points_; }
  PassEnd end() const override {
    return Pauses() || input_.outputs->rows_only ? PassEnd::kLastHookPoint : PassEnd::kLogits;
  }

  const PassState* begin() const override { return state_.has_value() ? &*state_ : nullptr; }
  bool Keeps(int layer) const override { return Pauses() && layer == LayerOf(pauses_.front()); }
  void Keep(PassState state) override {
    state_ = std::move(state);
    forked_at_state_ = forked_.size();
    replaced_at_state_.clear();
    for (const VariantScores& one : scores) replaced_at_state_.push_back(one.replaced);
    inputs_at_state_ = taps_.inputs();
  }

  // The sequences without interventions stay first in the batch. A variant's are appended at its first intervention.
  std::vector<int64_t> Fork(int layer) override {
    std::vector<int64_t> chosen;
    const int64_t sequences = tokens_.ids.size(0), batch = sequences * (1 + static_cast<int64_t>(forked_.size()));
    for (size_t v = 0; v < first_point_.size(); ++v) {
      if (LayerOf(first_point_[v]) != layer) continue;
      // Until this pass ends, the variants that are not yet forked equal the clean pass.
      if (Pauses() && first_point_[v] >= pauses_.front()) continue;
      if (chosen.empty()) {
        for (int64_t i = 0; i < batch; ++i) chosen.push_back(i);
      }
      for (int64_t i = 0; i < sequences; ++i) chosen.push_back(i);
      forked_.push_back(v);
    }
    if (!chosen.empty()) taps_.Fork(chosen, positions_);
    return chosen;
  }

  at::Tensor Replace(int hook_point, const at::Tensor& rows) override {
    if (Pauses() && hook_point == pauses_.front()) {
      Ask(rows);
      return {};
    }
    at::Tensor result;  // a copy, once something is replaced
    for (size_t f = 0; f < forked_.size(); ++f) {
      const std::vector<Intervention>& interventions = input_.variants[forked_[f]]->interventions;
      for (size_t i = 0; i < interventions.size(); ++i) {
        if (interventions[i].hook_point != hook_point) continue;
        if (!result.defined()) result = rows.clone(at::MemoryFormat::Contiguous);
        Apply(interventions[i], model_, TokensOn(rows.device()), StreamOf(result, 1 + f),
              GivenTo(forked_[f], i, 1 + f, rows.device()), &scores[1 + forked_[f]].replaced[i]);
      }
    }
    const std::vector<int>& wanted = input_.outputs->hook_points;
    taps_.HandOut(hook_point, result.defined() ? result : rows, [&](int point, const at::Tensor& values) {
      const auto found = std::lower_bound(wanted.begin(), wanted.end(), point);
      TakeRows(static_cast<size_t>(found - wanted.begin()), values);
    });
    return result;
  }

  void Finish(const at::Tensor& rows, const Unembedding& unembedding) override {
    // The rows that are not padding, in each stream.
    const BatchTokens& tokens = TokensOn(rows.device());
    const at::Tensor index = tokens.valid.reshape({-1}).nonzero().squeeze(1);
    const int64_t count = index.size(0);
    const int64_t piece = std::max<int64_t>(1, kLogitBytes / (unembedding.vocabulary_size() * 4));
    const int64_t stream_rows = tokens_.ids.numel();
    std::vector<Pieces> pieces(1 + forked_.size());
    // The id that follows each row's token; 0 after a sequence's last token, where it is not used.
    const at::Tensor next_ids =
        at::cat({tokens.ids.narrow(1, 1, positions_ - 1), at::zeros_like(tokens.ids.narrow(1, 0, 1))}, 1)
            .reshape({-1})
            .index_select(0, index);
    for (int64_t first = 0; first < count; first += piece) {
      const int64_t rows_here = std::min(piece, count - first);
      const at::Tensor here = index.narrow(0, first, rows_here);
      const at::Tensor next = next_ids.narrow(0, first, rows_here);
      at::Tensor clean;
      for (size_t s = 0; s < pieces.size(); ++s) {
        const at::Tensor x = rows.index_select(0, here + static_cast<int64_t>(s) * stream_rows);
        const at::Tensor logits = unembedding.Logits(x);
        at::Tensor log_probabilities = at::log_softmax(logits, 1);
        if (s == 0) clean = log_probabilities;
        Measure(logits, log_probabilities, clean, next, &pieces[s]);
      }
    }
    for (size_t s = 0; s < pieces.size(); ++s) TakePieces(pieces[s], s == 0 ? 0 : 1 + forked_[s - 1]);
  }

  // Values of consecutive rows of one stream, which are joined at the end.
  struct Pieces {
    std::vector<at::Tensor> loss, kl, top_logits, top_ids, top_log_probabilities, probability_of;
  };

  int LayerOf(int hook_point) const {
    return hook_point < model_.hook_points().size() ? model_.hook_points()[hook_point].layer : hook_point;
  }
  // Returns whether the pass that runs now or next ends at a hook point whose rows the client replaces.
  bool Pauses() const { return !pauses_.empty(); }

  // Chooses the hook points of the next pass: from the state's layer on, up to the pause if there is one.
  void ChoosePoints() {
    points_.clear();
    for (int point : all_points_) {
      if (state_.has_value() && LayerOf(point) < state_->layer) continue;
      if (!Pauses() || point <= pauses_.front()) points_.push_back(point);
    }
  }

  void GoBackToState() {
    forked_.resize(forked_at_state_);
    for (size_t s = 0; s < scores.size(); ++s) scores[s].replaced = replaced_at_state_[s];
    taps_.set_inputs(inputs_at_state_);
  }

  // Asks for the rows of every variant that has a kClient intervention at the hook point. `rows` are those of
  // the whole batch.
  void Ask(const at::Tensor& rows) {
    for (size_t v = 0; v < input_.variants.size(); ++v) {
      const std::vector<Intervention>& interventions = input_.variants[v]->interventions;
      const auto client = std::find_if(interventions.begin(), interventions.end(), [&](const Intervention& one) {
        return one.hook_point == pauses_.front() && one.operation == Operation::kClient;
      });
      if (client == interventions.end()) continue;
      const auto forked = std::find(forked_.begin(), forked_.end(), v);
      const size_t stream = forked == forked_.end() ? 0 : 1 + static_cast<size_t>(forked - forked_.begin());
      at::Tensor x = StreamOf(rows.contiguous(), stream).clone();
      for (auto before = interventions.begin(); before != client; ++before) {
        ReplacedRows not_counted;
        if (before->hook_point != client->hook_point) continue;
        const size_t i = static_cast<size_t>(before - interventions.begin());
        Apply(*before, model_, TokensOn(x.device()), x, GivenTo(v, i, stream, x.device()), &not_counted);
      }
      x = PartOf(*client, model_, x);
      for (size_t i = 0; i < input_.sequences.size(); ++i) {
        AskedRows& one = asked.emplace_back();
        one.sequence = i;
        one.variant = v;
        one.intervention = static_cast<size_t>(client - interventions.begin());
        one.rows = ToHost(x[static_cast<int64_t>(i)].narrow(0, 0, lengths_[i]));
      }
    }
  }

  // Returns the tokens on the device of one of the model's stages.
  const BatchTokens& TokensOn(at::Device device) {
    const auto [here, is_new] = tokens_on_.try_emplace(device);
    if (is_new) here->second = {tokens_.ids.to(device), tokens_.valid.to(device)};
    return here->second;
  }

  // Returns the inputs of intervention `i` of a variant whose rows are in stream `s` and lie on `device`.
  GivenRows GivenTo(size_t variant, size_t i, size_t s, at::Device device) const {
    GivenRows given;
    const auto answer = answers_.find({variant, i});
    if (answer != answers_.end()) {
      given.rows = answer->second.rows.to(device);
      given.mask = answer->second.mask.to(device);
    }
    const at::Tensor input = taps_.InputOf(input_.variants[variant]->interventions[i].dictionary);
    if (input.defined()) given.input = StreamOf(input, s);
    return given;
  }

  // Joins the answers for a variant's sequences in one tensor.
  void TakeAnswers() {
    for (const AskedRows& one : asked) {
      GivenRows& answer = answers_[{one.variant, one.intervention}];
      const int64_t sequences = tokens_.ids.size(0), length = lengths_[one.sequence];
      if (!answer.rows.defined()) {
        const int64_t width = static_cast<int64_t>(one.rows.size()) / length;
        answer.rows = at::zeros({sequences, positions_, width}, at::kFloat);
        answer.mask = at::zeros({sequences, positions_}, at::kBool);
      }
      const int64_t sequence = static_cast<int64_t>(one.sequence);
      std::copy(one.rows.begin(), one.rows.end(), answer.rows[sequence].data_ptr<float>());
      std::copy(one.mask.begin(), one.mask.end(), answer.mask[sequence].data_ptr<bool>());
    }
    asked.clear();
  }

  // Stream `s` of the rows of the whole batch, (B, T, width), as a view.
  at::Tensor StreamOf(const at::Tensor& rows, size_t s) const {
    const int64_t count = tokens_.ids.numel();
    return rows.narrow(0, static_cast<int64_t>(s) * count, count).view({tokens_.ids.size(0), positions_, rows.size(1)});
  }

  // A variant that has not reached its first intervention has the clean pass's rows.
  void TakeRows(size_t output, const at::Tensor& rows) {
    std::vector<size_t> stream(scores.size(), 0);
    for (size_t f = 0; f < forked_.size(); ++f) stream[1 + forked_[f]] = 1 + f;
    for (size_t v = 0; v < scores.size(); ++v) {
      const at::Tensor values = StreamOf(rows.contiguous(), stream[v]);
      for (size_t i = 0; i < input_.sequences.size(); ++i) {
        scores[v].sequences[i].rows[output] = ToHost(values[static_cast<int64_t>(i)].narrow(0, 0, lengths_[i]));
      }
    }
  }

  void Measure(const at::Tensor& logits, const at::Tensor& log_probabilities, const at::Tensor& clean,
               const at::Tensor& next, Pieces* pieces) const {
    const ScoreOutputs& outputs = *input_.outputs;
    pieces->loss.push_back(log_probabilities.gather(1, next.unsqueeze(1)).squeeze(1).neg());
    if (outputs.kl && !clean.is_same(log_probabilities)) {
      pieces->kl.push_back((clean.exp() * (clean - log_probabilities)).sum(1));
    }
    if (outputs.top_logits > 0) {
      at::Tensor values, ids;
      std::tie(values, ids) = at::topk(logits, outputs.top_logits, 1);
      pieces->top_logits.push_back(values);
      pieces->top_ids.push_back(ids);
      pieces->top_log_probabilities.push_back(log_probabilities.gather(1, ids));
    }
    if (!outputs.probability_of.empty()) {
      const std::vector<int64_t> ids(outputs.probability_of.begin(), outputs.probability_of.end());
      pieces->probability_of.push_back(
          log_probabilities.index_select(1, at::tensor(ids, at::kLong).to(logits.device())));
    }
  }

  // Distributes the measurements of one stream's rows among its sequences.
  void TakePieces(const Pieces& pieces, size_t variant) {
    const ScoreOutputs& outputs = *input_.outputs;
    const auto host = [](const std::vector<at::Tensor>& parts) {
      return parts.empty() ? std::vector<float>() : ToHost(at::cat(parts, 0));
    };
    const std::vector<float> loss = host(pieces.loss), kl = host(pieces.kl), logits = host(pieces.top_logits);
    const std::vector<float> log_probabilities = host(pieces.top_log_probabilities);
    const std::vector<float> probability_of = host(pieces.probability_of);
    const at::Tensor ids =
        pieces.top_ids.empty() ? at::Tensor() : at::cat(pieces.top_ids, 0).to(at::kLong).cpu().contiguous();
    const size_t k = static_cast<size_t>(outputs.top_logits), chosen = outputs.probability_of.size();
    size_t row = 0;
    for (size_t i = 0; i < input_.sequences.size(); ++i) {
      SequenceScore& score = scores[variant].sequences[i];
      const size_t length = input_.sequences[i].size();
      for (size_t t = 0; t + 1 < length; ++t) score.loss_sum += loss[row + t];
      if (outputs.token_loss) score.token_loss.assign(&loss[row], &loss[row] + length - 1);
      if (!kl.empty()) {
        score.kl.assign(&kl[row], &kl[row] + length);
        for (float value : score.kl) score.kl_sum += value;
      }
      for (size_t t = 0; k > 0 && t < length; ++t) {
        const size_t first = (row + t) * k;
        TopLogits& top = score.top_logits.emplace_back();
        top.logits.assign(&logits[first], &logits[first] + k);
        top.log_probabilities.assign(&log_probabilities[first], &log_probabilities[first] + k);
        for (size_t j = 0; j < k; ++j) top.ids.push_back(static_cast<uint32_t>(ids.data_ptr<int64_t>()[first + j]));
      }
      if (chosen > 0) {
        const float* begin = probability_of.data() + row * chosen;
        score.log_probabilities.assign(begin, begin + length * chosen);
      }
      row += length;
    }
  }

  Model& model_;
  const ScoreInput input_;
  DictionaryTaps taps_;
  std::vector<int64_t> lengths_;  // of the sequences
  int64_t positions_ = 0;         // of the longest sequence
  BatchTokens tokens_;            // on the host
  std::unordered_map<at::Device, BatchTokens> tokens_on_;
  std::vector<int> all_points_, points_;  // hook points of all passes, and of this one
  std::vector<int> first_point_;          // of each variant's interventions
  std::vector<size_t> forked_;            // variants that are in the batch, in its order
  std::vector<int> pauses_;               // hook points where rows are still to be asked for
  // The state from which the next pass begins, and what belongs to it.
  std::optional<PassState> state_;
  size_t forked_at_state_ = 0;
  std::vector<std::vector<ReplacedRows>> replaced_at_state_;
  DictionaryTaps::Inputs inputs_at_state_;
  // On the host, by variant and intervention.
  std::map<std::pair<size_t, size_t>, GivenRows> answers_;
};

}  // namespace

void ReplacedRows::Add(const ReplacedRows& other) {
  rows += other.rows;
  squared_error += other.squared_error;
  squares += other.squares;
  cosine_similarity += other.cosine_similarity;
  active_latents += other.active_latents;
  sum.resize(std::max(sum.size(), other.sum.size()));
  for (size_t i = 0; i < other.sum.size(); ++i) sum[i] += other.sum[i];
}

double ReplacedRows::ExplainedVariance() const {
  double variance = squares;
  for (double value : sum) variance -= value * value / static_cast<double>(rows);
  // This is a difference of sums of doubles, and anything below this share of the sums is rounding.
  constexpr double kRounding = 1e-12;
  return variance > kRounding * squares ? 1 - squared_error / variance : std::numeric_limits<double>::quiet_NaN();
}

absl::StatusOr<std::unique_ptr<ScorePass>> ScorePass::Make(Model& model, const ScoreInput& input) {
  std::unique_ptr<ScorePass> pass;
  absl::Status status = CatchTorch([&] {
    c10::InferenceMode inference;
    pass = std::make_unique<PausingPass>(model, input);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return pass;
}

absl::StatusOr<std::vector<VariantScores>> RunScorePass(Model& model, const ScoreInput& input) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ScorePass> pass, ScorePass::Make(model, input));
  RETURN_IF_ERROR(pass->Run());
  return std::move(pass->scores);
}

}  // namespace hookline
