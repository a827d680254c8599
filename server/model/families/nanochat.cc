#include "server/model/families/nanochat.h"

#include <dirent.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/input_file.h"
#include "server/base/json.h"
#include "server/base/status.h"
#include "server/model/decoder.h"
#include "server/model/families/config_fields.h"
#include "server/model/families/config_reader.h"
#include "server/model/load/memory_check.h"
#include "server/model/load/stages.h"
#include "server/model/load/torch_checkpoint.h"
#include "server/model/load/weight_taker.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// The machine epsilon of float32, which nanochat's norm uses in every dtype.
constexpr double kEpsilon = 1.1920928955078125e-07;
// The number of positions in nanochat's rotary tables is sequence_len times this factor.
constexpr int64_t kContextFactor = 10;
constexpr int64_t kMaxMetaBytes = int64_t{16} << 20;
// The files that nanochat writes nest three or four levels.
constexpr int kMaxMetaDepth = 32;
constexpr int64_t kTableMultiple = 64;

// The suffixes of the checkpoints' files, by step.
std::map<int64_t, std::string> FindSteps(const std::string& folder) {
  std::map<int64_t, std::string> steps;
  DIR* directory = opendir(folder.c_str());
  if (directory == nullptr) return steps;
  while (const dirent* entry = readdir(directory)) {
    absl::string_view name = entry->d_name;
    int64_t step;
    if (!absl::ConsumePrefix(&name, "model_") || !absl::ConsumeSuffix(&name, ".pt")) continue;
    if (name.find_first_not_of("0123456789") != absl::string_view::npos || !absl::SimpleAtoi(name, &step)) continue;
    steps[step] = std::string(name);
  }
  closedir(directory);
  return steps;
}

// The description of the model in meta_NNNNNN.json.
struct Meta {
  int64_t sequence_len = 0;
  int64_t vocab_size = 0;
  int64_t n_layer = 0;
  int64_t n_head = 0;
  int64_t n_kv_head = 0;
  int64_t n_embd = 0;
  std::optional<std::string> window_pattern;
};

absl::StatusOr<Meta> ReadMeta(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxMetaBytes));
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", what));
  };
  const absl::StatusOr<Json> json = ParseJsonObject(text, kMaxMetaDepth);
  if (!json.ok()) return bad(json.status().message());
  const ConfigReader reader(*json, path);
  const ConfigReader config = reader.Object("model_config");
  Meta meta;
  meta.sequence_len = config.Integer("sequence_len");
  meta.vocab_size = config.Integer("vocab_size");
  meta.n_layer = config.Integer("n_layer", std::nullopt, kMaxLayers);
  meta.n_head = config.Integer("n_head");
  meta.n_kv_head = config.Integer("n_kv_head");
  meta.n_embd = config.Integer("n_embd");
  if (config.Has("window_pattern")) meta.window_pattern = config.Text("window_pattern");
  RETURN_IF_ERROR(config.status());
  if (meta.n_embd % meta.n_head != 0) {
    return bad(absl::StrCat("model_config.n_embd ", meta.n_embd, " is not a multiple of n_head ", meta.n_head));
  }
  if (meta.n_head % meta.n_kv_head != 0) {
    return bad(absl::StrCat("model_config.n_head ", meta.n_head, " is not a multiple of n_kv_head ", meta.n_kv_head));
  }
  if (meta.n_embd / meta.n_head % 2 != 0) {
    return bad(absl::StrCat("model_config.n_embd / n_head is ", meta.n_embd / meta.n_head,
                            ", which cannot be rotated in halves"));
  }
  return meta;
}

// Variants E and G differ only in the cap of the logits.
constexpr double kCapOfE = 15, kCapOfG = 20;

enum class Era { kA, kAPadded, kB, kC, kE, kF, kH, kI };

const char* Name(Era era) {
  switch (era) {
    case Era::kA:
      return "A";
    case Era::kAPadded:
      return "A'";
    case Era::kB:
      return "B";
    case Era::kC:
      return "C";
    case Era::kE:
      return "E or G";
    case Era::kF:
      return "F";
    case Era::kH:
      return "H";
    case Era::kI:
      return "I";
  }
  return "";
}

// Finds the variant by the names and shapes of its weights. B and C have the same weights; C has a window pattern, from
// its metadata or from the operator.
absl::StatusOr<Era> FindEra(const StateDict& weights, const Meta& meta, bool has_window_pattern) {
  const auto has = [&](const char* name) { return weights.tensors.count(name) != 0; };
  const auto refused = [&](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat(weights.path, ": ", what, ", which this server does not support"));
  };
  for (const auto& [name, tensor] : weights.tensors) {
    for (absl::string_view part : {".moe.", ".mlp.router.", ".mlp.experts."}) {
      if (absl::StrContains(name, part)) return refused(absl::StrCat("'", name, "' belongs to a mixture of experts"));
    }
  }
  if (has("smear_lambda")) return Era::kI;
  const std::string last_gate = absl::StrCat("transformer.h.", meta.n_layer - 1, ".attn.ve_gate.weight");
  if (const auto gate = weights.tensors.find(last_gate); gate != weights.tensors.end()) {
    const int64_t channels = gate->second.dim() == 2 ? gate->second.size(1) : -1;
    if (channels == 12) return Era::kH;
    if (channels == 32) return has("bigram_lambdas") ? Era::kF : Era::kE;
    return refused(absl::StrCat("'", last_gate, "' has shape (", absl::StrJoin(gate->second.sizes(), ", "),
                                ") instead of 12 or 32 channels"));
  }
  if (has("v0_lambdas")) return refused("'v0_lambdas' belongs to variant D");
  if (has("resid_lambdas")) return has_window_pattern ? Era::kC : Era::kB;
  const auto table = weights.tensors.find("transformer.wte.weight");
  const bool padded =
      table != weights.tensors.end() && table->second.dim() == 2 && table->second.size(0) > meta.vocab_size;
  return padded ? Era::kAPadded : Era::kA;
}

int64_t ShortWindow(Era era, int64_t sequence_len) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  if (era == Era::kH) return up(up(sequence_len, 3), 128) * 128;
  if (era == Era::kI) return up(up(sequence_len, 4), 128) * 128;
  return sequence_len / 2;
}

DecoderConfig MakeConfig(Era era, const Meta& meta, const std::string& window_pattern) {
  const bool late = era == Era::kH || era == Era::kI;
  DecoderConfig config;
  config.width = meta.n_embd;
  config.vocabulary_size = meta.vocab_size;
  config.context_length = kContextFactor * meta.sequence_len;
  const NormConfig norm{NormConfig::Kind::kRms, kEpsilon, /*weighted=*/false};
  config.embedding_norm = config.ln1 = config.ln2 = config.ln_final = norm;
  RotaryConfig rotary;
  rotary.dims = meta.n_embd / meta.n_head;
  rotary.base = late ? 100000 : 10000;
  rotary.clockwise = true;
  config.rotary = {rotary};
  SoftmaxAttentionConfig attention;
  attention.heads = meta.n_head;
  attention.key_value_heads = meta.n_kv_head;
  attention.head_width = meta.n_embd / meta.n_head;
  attention.rotary = 0;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  attention.query_key_norm = {norm, QueryKeyNormConfig::Place::kAfterRotary, QueryKeyNormConfig::Span::kHead,
                              era == Era::kI   ? 1.2
                              : era == Era::kH ? 1.15
                                               : 1};
  // The weights of variants E and G are the same, but their caps are kCapOfE and kCapOfG, and the checkpoint does not
  // say which of the two it is.
  if (era != Era::kE) config.logit_soft_cap = 15;
  if (era >= Era::kE) attention.value_embedding_factor = late ? 3 : 2;
  const DenseConfig mlp{4 * meta.n_embd, Activation::kReluSquared, /*gated=*/false};
  for (int64_t i = 0; i < meta.n_layer; ++i) {
    if (era >= Era::kC) {
      const char kind = window_pattern[static_cast<size_t>(i) % window_pattern.size()];
      const bool is_short = (kind == 'S' || kind == 's') && i + 1 < meta.n_layer;
      attention.reach = is_short ? ShortWindow(era, meta.sequence_len) : meta.sequence_len;
    }
    config.layers.push_back({attention, mlp});
  }
  return config;
}

// A checkpoint whose files are opened, but whose weights are not yet read.
struct Checkpoint {
  int64_t step = 0;
  Meta meta;
  StateDict state;
  Era era = Era::kA;
  std::string window_pattern;
  DecoderConfig config;
};

// Uses the operator's cap of the logits if the files do not determine it.
absl::Status StateSoftCap(const ModelOptions& options, Checkpoint* checkpoint) {
  if (options.logit_soft_cap == 0) return absl::OkStatus();
  if (checkpoint->era != Era::kE) {
    return absl::InvalidArgumentError(absl::StrCat("--logit-soft-cap does not apply: ", checkpoint->state.path,
                                                   " is of variant ", Name(checkpoint->era), ", whose cap is ",
                                                   checkpoint->config.logit_soft_cap));
  }
  if (options.logit_soft_cap != kCapOfE && options.logit_soft_cap != kCapOfG) {
    return absl::InvalidArgumentError(absl::StrCat("--logit-soft-cap ", options.logit_soft_cap, " is neither ", kCapOfE,
                                                   " (variant E) nor ", kCapOfG, " (variant G)"));
  }
  checkpoint->config.logit_soft_cap = options.logit_soft_cap;
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> Open(const ModelOptions& options) {
  const std::map<int64_t, std::string> steps = FindSteps(options.path);
  const auto chosen = options.step < 0 ? std::prev(steps.end()) : steps.find(options.step);
  if (chosen == steps.end()) {
    return absl::NotFoundError(absl::StrCat(
        options.path, ": no checkpoint of step ", options.step, "; there are ",
        absl::StrJoin(steps, ", ", [](std::string* out, const auto& step) { absl::StrAppend(out, step.first); })));
  }
  Checkpoint checkpoint;
  checkpoint.step = chosen->first;
  ASSIGN_OR_RETURN(checkpoint.meta, ReadMeta(absl::StrCat(options.path, "/meta_", chosen->second, ".json")));
  ASSIGN_OR_RETURN(checkpoint.state, ReadTorchCheckpoint(absl::StrCat(options.path, "/model_", chosen->second, ".pt")));
  const std::optional<std::string>& written = checkpoint.meta.window_pattern;
  const bool stated = !options.window_pattern.empty();
  ASSIGN_OR_RETURN(checkpoint.era, FindEra(checkpoint.state, checkpoint.meta, stated || written.has_value()));
  const std::string pattern = stated ? options.window_pattern : written.value_or("L");
  if (pattern.empty() || pattern.find_first_not_of("SLsl") != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(stated ? "--window-pattern" : options.path + ": window_pattern",
                                                   " '", pattern.substr(0, 80), "' has letters other than S and L"));
  }
  if (stated && checkpoint.era < Era::kC) {
    return absl::InvalidArgumentError(absl::StrCat("--window-pattern does not apply: ", checkpoint.state.path,
                                                   " is of variant ", Name(checkpoint.era), ", which has no windows"));
  }
  checkpoint.window_pattern = pattern;
  checkpoint.config = MakeConfig(checkpoint.era, checkpoint.meta, pattern);
  RETURN_IF_ERROR(StateSoftCap(options, &checkpoint));
  return checkpoint;
}

// `rows` is the number of rows in tables by token id.
LayerWeights TakeLayer(const Checkpoint& checkpoint, int64_t layer, int64_t rows, WeightTaker& take) {
  const Meta& meta = checkpoint.meta;
  const Era era = checkpoint.era;
  const int64_t d = checkpoint.config.width;
  const int64_t keys = meta.n_kv_head * (meta.n_embd / meta.n_head);
  const std::string prefix = absl::StrCat("transformer.h.", layer, ".");
  SoftmaxAttentionWeights attention;
  attention.query.weight = take.Linear(prefix + "attn.c_q.weight", d, d);
  attention.key.weight = take.Linear(prefix + "attn.c_k.weight", d, keys);
  attention.value.weight = take.Linear(prefix + "attn.c_v.weight", d, keys);
  attention.out.weight = take.Linear(prefix + "attn.c_proj.weight", d, d);
  if (era >= Era::kE && layer % 2 == (meta.n_layer - 1) % 2) {
    const int64_t channels = era == Era::kE || era == Era::kF ? 32 : 12;
    attention.value_embedding = take.Table(absl::StrCat("value_embeds.", layer, ".weight"), {rows, keys});
    attention.value_embedding_gate = take.Linear(prefix + "attn.ve_gate.weight", channels, meta.n_kv_head);
  }
  DenseWeights mlp;
  mlp.up.weight = take.Linear(prefix + "mlp.c_fc.weight", d, 4 * d);
  mlp.down.weight = take.Linear(prefix + "mlp.c_proj.weight", 4 * d, d);
  LayerWeights weights;
  weights.attention = std::move(attention);
  weights.feed_forward = std::move(mlp);
  return weights;
}

absl::StatusOr<DecoderWeights> TakeWeights(const Checkpoint& checkpoint, WeightTaker& take) {
  const Era era = checkpoint.era;
  const Meta& meta = checkpoint.meta;
  const DecoderConfig& config = checkpoint.config;
  const StateDict& state = checkpoint.state;
  const int64_t d = config.width;
  const int64_t padded = (meta.vocab_size + kTableMultiple - 1) / kTableMultiple * kTableMultiple;
  const auto table = state.tensors.find("transformer.wte.weight");
  const bool has_padding = table != state.tensors.end() && table->second.dim() == 2 && table->second.size(0) == padded;
  const int64_t rows = has_padding ? padded : meta.vocab_size;

  DecoderWeights weights;
  weights.token_embedding = take.Table("transformer.wte.weight", {rows, d});
  if (take.evaluates() && config.logit_soft_cap != 0) {
    weights.unembedding.weight = take.Linear("lm_head.weight", d, rows);
    if (weights.unembedding.weight.defined()) {
      weights.unembedding.weight = weights.unembedding.weight.narrow(1, 0, meta.vocab_size);
    }
  } else {
    take.Ignore("lm_head.weight", {rows, d});
  }
  std::vector<double> residual(meta.n_layer, 1), embedding(meta.n_layer, 0), bigram(meta.n_layer, 0);
  if (era >= Era::kB) {
    residual = take.Numbers("resid_lambdas", meta.n_layer);
    embedding = take.Numbers("x0_lambdas", meta.n_layer);
  }
  if (era == Era::kF) {
    bigram = take.Numbers("bigram_lambdas", meta.n_layer);
    weights.bigram_embedding = take.Table("bigram_embed.embed.weight", {5 * meta.vocab_size, d});
  }
  if (era == Era::kI) {
    constexpr int64_t kSmearChannels = 24;
    weights.smear_factor = take.Numbers("smear_lambda", 1)[0];
    weights.smear_gate = take.Linear("smear_gate.weight", kSmearChannels, 1);
    weights.backout_factor = take.Numbers("backout_lambda", 1)[0];
  }
  for (int64_t i = 0; i < meta.n_layer; ++i) {
    LayerWeights layer = TakeLayer(checkpoint, i, rows, take);
    layer.residual_factor = residual[i];
    layer.embedding_factor = embedding[i];
    layer.bigram_factor = bigram[i];
    weights.layers.push_back(std::move(layer));
  }
  RETURN_IF_ERROR(take.Finish());
  return weights;
}

// Returns the bytes that the weights will take on their devices. Completes `stages`.
absl::StatusOr<std::vector<MemoryNeed>> Count(const ModelOptions& options, const Checkpoint& checkpoint,
                                              at::ScalarType dtype, std::vector<Stage>* stages) {
  WeightTaker count(checkpoint.state, at::kCPU, dtype, WeightTaker::Mode::kCount);
  TakeToStages(*stages, &count);
  count.set_evaluates(options.evaluation);
  RETURN_IF_ERROR(TakeWeights(checkpoint, count).status());
  return PlaceWeights(ModelName(options), count.taken(), static_cast<int>(checkpoint.config.layers.size()), stages);
}

}  // namespace

bool IsNanochatFolder(const std::string& folder) { return !FindSteps(folder).empty(); }

absl::StatusOr<std::vector<MemoryNeed>> CountNanochat(const ModelOptions& options, std::vector<Stage> stages,
                                                      at::ScalarType dtype) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Open(options));
  return Count(options, checkpoint, dtype, &stages);
}

absl::StatusOr<std::unique_ptr<Model>> LoadNanochat(const ModelOptions& options, ModelInfo info, at::ScalarType dtype,
                                                    std::vector<Stage>* stages) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Open(options));
  ASSIGN_OR_RETURN(const std::vector<MemoryNeed> needs, Count(options, checkpoint, dtype, stages));
  RETURN_IF_ERROR(CheckMemory(needs, MemoryOf));
  WeightTaker take(checkpoint.state, at::Device(stages->front().device), dtype);
  TakeToStages(*stages, &take);
  take.set_evaluates(options.evaluation);
  info.no_logits = !options.evaluation
                       ? kLoadedWithoutEvaluation
                       : "is of nanochat's variant E or G, which differ in their logits but not in their files; "
                         "choose one with --logit-soft-cap";
  ASSIGN_OR_RETURN(DecoderWeights weights, TakeWeights(checkpoint, take));

  info.architecture = "nanochat";
  info.variant = Name(checkpoint.era);
  info.details = absl::StrCat("step ", checkpoint.step, ", sequence_len ", checkpoint.meta.sequence_len);
  if (checkpoint.era >= Era::kC) {
    absl::StrAppend(&info.details, ", window_pattern ", checkpoint.window_pattern,
                    !options.window_pattern.empty()              ? " (stated)"
                    : checkpoint.meta.window_pattern.has_value() ? ""
                                                                 : " (assumed: the checkpoint does not say)");
  }
  ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(checkpoint.config.ToString()));
  for (const auto& [name, tensor] : checkpoint.state.tensors) info.parameters += tensor.numel();
  return std::make_unique<Decoder>(std::move(info), checkpoint.config, std::move(weights), dtype, *stages);
}

}  // namespace hookline
