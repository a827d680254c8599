#include "server/model/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/aliases.h"
#include "server/model/catch_torch.h"
#include "server/model/dictionary/dictionary_taps.h"
#include "server/model/layers.h"
#include "server/model/per_layer_embedding.h"

namespace hookline {
namespace {

// Takes the heads of the first layer that has key/value heads, else those of the first layer.
void FillHeads(const DecoderConfig& config, ModelInfo* info) {
  for (const LayerConfig& layer : config.layers) {
    const auto* softmax = std::get_if<SoftmaxAttentionConfig>(&layer.attention);
    const auto* latent = std::get_if<LatentAttentionConfig>(&layer.attention);
    if (softmax == nullptr && latent == nullptr) continue;
    info->heads = static_cast<int>(softmax != nullptr ? softmax->heads : latent->heads);
    info->key_value_heads = static_cast<int>(softmax != nullptr ? softmax->key_value_heads : latent->heads);
    return;
  }
  const auto& delta = std::get<GatedDeltaConfig>(config.layers.front().attention);
  info->heads = static_cast<int>(delta.value_heads);
  info->key_value_heads = static_cast<int>(delta.key_heads);
}

std::string DescribeEmbedding(const DecoderConfig& config) {
  if (config.embedding_scale != 1) return "The token's embedding, multiplied by the model's scale.";
  if (config.embedding_norm.kind != NormConfig::Kind::kNone) return "The token's embedding, before its norm.";
  return "The token's embedding.";
}

}  // namespace

Decoder::Decoder(ModelInfo info, DecoderConfig config, DecoderWeights weights, at::ScalarType dtype,
                 const std::vector<Stage>& stages)
    : config_(std::move(config)), weights_(std::move(weights)), dtype_(dtype), unembedding_(config_, weights_) {
  info_ = std::move(info);
  info_.layers = static_cast<int>(config_.layers.size());
  info_.width = config_.width;
  info_.context_length = config_.context_length;
  info_.vocabulary_size = config_.vocabulary_size;
  FillHeads(config_, &info_);
  if (unembedding_.exists()) info_.no_logits.clear();
  if (stages.empty()) AddStage(config_.layers.size(), weights_.token_embedding.device());
  for (const Stage& stage : stages) {
    AddStage(static_cast<size_t>(stage.first_block) + static_cast<size_t>(stage.blocks), at::Device(stage.device));
  }

  HookPointList list;
  list.Enter("", -1);
  embed_hook_ = list.Add("hook_embed", config_.width, DescribeEmbedding(config_));
  if (config_.position_embedding) {
    position_embed_hook_ = list.Add("hook_pos_embed", config_.width, "The position's learned embedding.");
  }
  std::vector<Block> blocks;
  blocks.reserve(config_.layers.size());
  for (int i = 0; i < info_.layers; ++i) {
    LayerWeights& layer = weights_.layers[i];
    inputs_.push_back({layer.residual_factor, layer.embedding_factor, layer.bigram_factor});
    reads_embedding_ |= layer.embedding_factor != 0;
    blocks.emplace_back(config_, i, std::move(layer), dtype, list);
  }
  blocks_ = std::make_shared<const std::vector<Block>>(std::move(blocks));
  weights_.layers.clear();
  list.Enter("", info_.layers);
  for (at::Tensor* weight : {&weights_.ln_final.weight, &weights_.ln_final.bias}) {
    if (weight->defined()) *weight = weight->to(stages_.back().device);
  }
  ln_final_ = std::make_shared<NormPlace>(config_.ln_final, weights_.ln_final, config_.width, dtype, "ln_final",
                                          "The last norm", "the unembedding", list);
  hook_points_ = WithAliases(std::move(list).Finish(), info_.architecture);
}

Decoder::Decoder(const Decoder& other, Sharing sharing)
    : config_(other.config_),
      weights_(other.weights_),
      dtype_(other.dtype_),
      embed_hook_(other.embed_hook_),
      position_embed_hook_(other.position_embed_hook_),
      inputs_(other.inputs_),
      reads_embedding_(other.reads_embedding_),
      blocks_(other.blocks_),
      ln_final_(other.ln_final_),
      unembedding_(other.unembedding_) {
  info_ = other.info_;
  hook_points_ = other.hook_points_;
  dictionaries_ = other.dictionaries_;
  for (const OwnStage& stage : other.stages_) {
    AddStage(stage.end, stage.device);
    if (sharing == Sharing::kPipeline) stages_.back().turn = stage.turn;
  }
}

std::unique_ptr<Decoder> Decoder::Share(Sharing sharing) const {
  return std::unique_ptr<Decoder>(new Decoder(*this, sharing));
}

void Decoder::AddStage(size_t end, at::Device device) {
  stages_.push_back({static_cast<int>(end), device, Rotary(config_.rotary, config_.context_length, device, dtype_),
                     CausalMasks(device), std::make_shared<std::mutex>()});
}

absl::Status Decoder::Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                              absl::Span<const int> hook_points, Tap tap) {
  DictionaryTaps wanted(dictionaries_, hook_points);
  const auto visit = [&](int hook_point, const at::Tensor& rows) {
    wanted.HandOut(hook_point, rows, tap);
    return at::Tensor();
  };
  Taps taps(hook_points_, wanted.computed(), PassEnd::kLastHookPoint, visit);
  PassState start;
  start.token_ids = token_ids;
  start.lengths.assign(lengths.begin(), lengths.end());
  return RunAll(std::move(start), taps, /*editor=*/nullptr);
}

absl::Status Decoder::Evaluate(const at::Tensor& token_ids, absl::Span<const int64_t> lengths, PassEditor& editor) {
  if (editor.end() == PassEnd::kLogits && !unembedding_.exists()) {
    return absl::FailedPreconditionError(absl::StrCat("model \"", info_.name, "\" ", info_.no_logits));
  }
  const auto visit = [&](int hook_point, const at::Tensor& rows) { return editor.Replace(hook_point, rows); };
  Taps taps(hook_points_, editor.hook_points(), editor.end(), visit);
  if (editor.begin() != nullptr) return RunAll(*editor.begin(), taps, &editor);
  PassState start;
  start.token_ids = token_ids;
  start.lengths.assign(lengths.begin(), lengths.end());
  return RunAll(std::move(start), taps, &editor);
}

absl::Status Decoder::RunAll(PassState from, Taps& taps, PassEditor* editor) {
  return CatchTorch([&] {
    c10::InferenceMode inference;
    Run(std::move(from), taps, editor);
    return absl::OkStatus();
  });
}

// B sequences of T tokens, D = width; x is (B * T, D).
bool Decoder::Run(PassState from, Taps& taps, PassEditor* editor) {
  Progress progress;
  progress.state = std::move(from);
  PassState& state = progress.state;
  const int layers = static_cast<int>(blocks_->size());
  // A resumed pass starts in the stage of its next block.
  while (progress.stage + 1 < stages_.size() && state.layer >= stages_[progress.stage].end) ++progress.stage;
  EnterStage(taps, &progress);
  at::Tensor& x = state.x;
  if (state.layer < 0) {
    Enter(-1, editor, &progress);
    if (Embed(progress.pass->token_ids, taps, &x, &progress.pass->per_layer)) return true;
    if (reads_embedding_) state.x0 = x;
    if (weights_.bigram_embedding.defined()) state.bigram = EmbedBigrams(progress.pass->token_ids);
  }
  for (int i = std::max(0, state.layer); i < layers; ++i) {
    if (i == stages_[progress.stage].end) {
      ++progress.stage;
      EnterStage(taps, &progress);
    }
    Enter(i, editor, &progress);
    const Inputs& inputs = inputs_[static_cast<size_t>(i)];
    if (inputs.residual != 1) x = x * inputs.residual;
    if (inputs.embedding != 0) x = x + state.x0 * inputs.embedding;
    if (state.bigram.defined()) x = x + state.bigram * inputs.bigram;
    ++blocks_executed_;
    if ((*blocks_)[static_cast<size_t>(i)].Run(*progress.pass, &x)) return true;
    if (i == layers / 2 && weights_.backout_factor != 0) state.kept = x;
  }
  Enter(layers, editor, &progress);
  if (weights_.backout_factor != 0) x = at::sub(x, state.kept, weights_.backout_factor);
  at::Tensor out;
  if (ln_final_->Run(x, taps, &out)) return true;
  if (editor != nullptr) editor->Finish(out, unembedding_);
  return true;
}

void Decoder::EnterStage(Taps& taps, Progress* progress) {
  OwnStage& stage = stages_[progress->stage];
  // Unlocks first, so that the next batch can enter the previous stage.
  if (progress->turn.owns_lock()) progress->turn.unlock();
  progress->turn = std::unique_lock<std::mutex>(*stage.turn);
  PassState& state = progress->state;
  if (progress->pass.has_value()) {
    state.token_ids = std::move(progress->pass->token_ids);
    state.per_layer = std::move(progress->pass->per_layer);
    state.shared = std::move(progress->pass->shared);
  }
  // A tensor that lies there already stays as it is.
  const auto bring = [&stage](at::Tensor* tensor) {
    if (tensor->defined()) *tensor = tensor->to(stage.device, /*non_blocking=*/true);
  };
  for (at::Tensor* tensor : {&state.x, &state.x0, &state.bigram, &state.kept, &state.token_ids, &state.per_layer}) {
    bring(tensor);
  }
  for (KeysAndValues& shared : state.shared) {
    bring(&shared.keys);
    bring(&shared.values);
  }
  ForwardPass here{state.token_ids, dtype_, stage.rotary, stage.masks, taps, state.per_layer, std::move(state.shared)};
  here.shared.resize(blocks_->size());
  progress->pass.emplace(std::move(here));
  stage.rotary.Begin(progress->pass->positions(), state.lengths);
}

void Decoder::Enter(int layer, PassEditor* editor, Progress* progress) {
  if (editor == nullptr) return;
  progress->state.layer = layer;
  if (editor->Keeps(layer)) {
    PassState kept = progress->state;
    kept.token_ids = progress->pass->token_ids;
    kept.per_layer = progress->pass->per_layer;
    kept.shared = progress->pass->shared;
    editor->Keep(std::move(kept));
  }
  const std::vector<int64_t> chosen = editor->Fork(layer);
  if (!chosen.empty()) Fork(chosen, progress);
}

void Decoder::Fork(const std::vector<int64_t>& chosen, Progress* progress) {
  ForwardPass* const pass = &*progress->pass;
  PassState* const state = &progress->state;
  const int64_t batch = pass->batch();
  const at::Tensor index = at::tensor(chosen, at::kLong).to(pass->token_ids.device());
  const auto fork = [&](at::Tensor* sequences) {
    if (sequences->defined()) *sequences = at::index_select(*sequences, 0, index);
  };
  const auto fork_rows = [&](at::Tensor* rows) {
    if (!rows->defined()) return;
    std::vector<int64_t> sizes = rows->sizes().vec();
    sizes[0] = -1;
    *rows = at::index_select(rows->reshape({batch, -1}), 0, index).view(sizes);
  };
  fork(&pass->token_ids);
  fork_rows(&pass->per_layer);
  for (KeysAndValues& shared : pass->shared) {
    fork(&shared.keys);
    fork(&shared.values);
  }
  for (at::Tensor* rows : {&state->x, &state->x0, &state->bigram, &state->kept}) fork_rows(rows);
  if (state->lengths.empty()) return;
  std::vector<int64_t> forked;
  for (int64_t sequence : chosen) forked.push_back(state->lengths[static_cast<size_t>(sequence)]);
  state->lengths = std::move(forked);
  stages_[progress->stage].rotary.Begin(pass->positions(), state->lengths);
}

bool Decoder::Embed(const at::Tensor& token_ids, Taps& taps, at::Tensor* out, at::Tensor* per_layer) {
  const int64_t batch = token_ids.size(0), positions = token_ids.size(1);
  at::Tensor x = at::index_select(weights_.token_embedding, 0, token_ids.reshape(-1)).to(dtype_);
  if (weights_.embedding_projection.weight.defined()) x = Linear(x, weights_.embedding_projection);
  if (config_.embedding_scale != 1) {
    // The factor is rounded to the model's dtype, too.
    x = x * at::scalar_tensor(config_.embedding_scale, at::TensorOptions().dtype(dtype_).device(x.device()));
  }
  if (taps(embed_hook_, x)) return true;
  *per_layer = EmbedPerLayer(config_, weights_, token_ids, x);
  if (config_.position_embedding) {
    const at::Tensor table = weights_.position_embedding.narrow(0, 0, positions).to(dtype_);
    at::Tensor embedded = table.unsqueeze(0).expand({batch, positions, config_.width});
    if (taps(position_embed_hook_, embedded)) return true;
    x = (x.view({batch, positions, config_.width}) + embedded).view({-1, config_.width});
  }
  if (config_.embedding_norm.kind != NormConfig::Kind::kNone) x = Norm(x, config_.embedding_norm, {}).out;
  if (weights_.smear_gate.defined() && positions > 1) {
    // x[t] += factor sigmoid(x[t, :channels] gate) x[t - 1]
    const at::Tensor rows = x.view({batch, positions, config_.width});
    const at::Tensor later = rows.narrow(1, 1, positions - 1);
    const at::Tensor channels = later.narrow(2, 0, weights_.smear_gate.size(0));
    const at::Tensor gate = at::matmul(channels, weights_.smear_gate).sigmoid_().mul_(weights_.smear_factor);
    x = at::cat({rows.narrow(1, 0, 1), later + gate * rows.narrow(1, 0, positions - 1)}, 1).view({-1, config_.width});
  }
  *out = std::move(x);
  return false;
}

// Rows of the table at (36313 token[t] XOR 27191 token[t-1]) mod (rows - 1), and at rows - 1 for position 0.
at::Tensor Decoder::EmbedBigrams(const at::Tensor& token_ids) const {
  const int64_t last = 5 * config_.vocabulary_size - 1;
  const int64_t positions = token_ids.size(1);
  at::Tensor index = at::full_like(token_ids, last);
  if (positions > 1) {
    const at::Tensor hashed =
        at::bitwise_xor(token_ids.narrow(1, 1, positions - 1) * 36313, token_ids.narrow(1, 0, positions - 1) * 27191);
    index.narrow(1, 1, positions - 1).copy_(hashed.remainder(last));
  }
  return at::index_select(weights_.bigram_embedding, 0, index.view(-1)).to(dtype_);
}

}  // namespace hookline
