#include "server/model/aliases.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/model/module_names.h"

namespace hookline {
namespace {

// The hook point that a name means, or the reason why Hookline has no such tensor.
struct Meaning {
  int index = -1;
  std::string why;  // completes the sentence that begins with the name; empty if the name is unknown
};

class Collector {
 public:
  Collector(const HookPoints& points, absl::string_view architecture)
      : points_(points), architecture_(architecture), modules_(ModuleNamesOf(architecture)) {}

  Aliases Collect() {
    if (points_.Find("blocks.0.hook_resid_pre") < 0) return {};
    int blocks = 0;
    while (Has(blocks, "hook_resid_pre")) AddBlock(blocks++);
    AddEnds(Index(blocks - 1, "hook_resid_post"));
    std::stable_sort(aliases_.names.begin(), aliases_.names.end(),
                     [](const auto& a, const auto& b) { return a.second < b.second; });
    return std::move(aliases_);
  }

 private:
  // The tensors of a block that its modules read and return.
  struct Branches {
    int attention_input = -1, mlp_input = -1;
    Meaning attention_output, mlp_output;
  };

  static std::string Name(int block, absl::string_view rest) { return absl::StrCat("blocks.", block, ".", rest); }
  bool Has(int block, absl::string_view name) const { return Index(block, name) >= 0; }
  int Index(int block, absl::string_view name) const { return points_.Find(Name(block, name)); }
  // The output of a norm, which is its normalized value where it has no weight; -1 where there is no norm.
  int OutOf(int block, absl::string_view norm) const {
    const int out = Index(block, absl::StrCat(norm, ".hook_out"));
    return out >= 0 ? out : Index(block, absl::StrCat(norm, ".hook_normalized"));
  }

  void Add(std::string name, int index) { Add(std::move(name), Meaning{index, ""}); }
  void Add(std::string name, const Meaning& meaning) {
    const int own = points_.Find(name);
    const bool is_hook_point = own >= 0 && points_[own].name == name;
    if (is_hook_point || (meaning.index < 0 && meaning.why.empty()) || !known_.insert(name).second) return;
    if (meaning.index >= 0) {
      aliases_.names.emplace_back(std::move(name), meaning.index);
    } else {
      aliases_.refused.emplace_back(std::move(name), meaning.why);
    }
  }

  // Adds the module's path below each name of the block. An empty path means the block itself.
  void AddModule(int block, absl::string_view module, const Meaning& input, const Meaning& output) {
    for (const char* blocks : modules_.blocks) {
      AddPath(absl::StrCat(blocks, block, module.empty() ? "" : ".", module), input, output);
    }
  }
  void AddPath(const std::string& path, const Meaning& input, const Meaning& output) {
    Add(path + ".input", input);
    Add(path + ".output", output);
    Add(path, output);
  }
  // Adds the names of the bridge for the same module.
  void AddBridge(int block, absl::string_view name, const Meaning& input, const Meaning& output) {
    Add(absl::StrCat(Name(block, name), ".hook_in"), input);
    Add(absl::StrCat(Name(block, name), ".hook_out"), output);
  }

  void AddBlock(int i) {
    const int pre = Index(i, "hook_resid_pre");
    const int post = Index(i, "hook_resid_post");
    Add(Name(i, "hook_attn"), Index(i, "hook_attn_out"));
    Add(Name(i, "hook_mlp"), Index(i, "hook_mlp_out"));
    Add(Name(i, "hook_in"), pre);
    Add(Name(i, "hook_out"), post);
    AddModule(i, "", {pre, ""}, {post, ""});
    RefuseOfBlock(i);
    // Norms after the residual sums read and write tensors other than those that their names mean in other families.
    const int ln1 = Index(i, "ln1.hook_normalized");
    if (ln1 >= 0 && ln1 > Index(i, "hook_attn_out")) return;
    const Branches branches = BranchesOf(i, pre);
    AddBranches(i, pre, branches);
    for (const InnerModule& module : modules_.inner) {
      const auto [input, output] = MeaningOf(i, module.role, branches);
      if (output.index >= 0 || !output.why.empty()) AddModule(i, module.path, input, output);
    }
    AddBridgesInside(i, branches);
    AddOtherMeanings(i, branches);
  }

  // Adds names that the bridge uses for another tensor in some families.
  void AddOtherMeanings(int i, const Branches& branches) {
    if (architecture_ == "olmo2" || architecture_ == "olmo3") {
      for (const auto& [norm, raw] : {std::pair("ln1", "attn.hook_out"), std::pair("ln2", "mlp.hook_out")}) {
        Add(Name(i, absl::StrCat(norm, ".hook_in")), Index(i, raw));
        for (const char* hook : {".hook_scale", ".hook_normalized", ".hook_out"}) {
          Add(Name(i, absl::StrCat(norm, hook)), Index(i, absl::StrCat(norm, "_post", hook)));
        }
      }
    }
    // In a layer without rotation, the bridge's names of rotated queries and keys mean the plain ones.
    if (points_.Find("blocks.0.attn.hook_rot_q") >= 0 && !HasRole(ModuleRole::kQueryNorm)) {
      Add(Name(i, "attn.hook_rot_q"), Index(i, "attn.hook_q"));
      Add(Name(i, "attn.hook_rot_k"), Index(i, "attn.hook_k"));
    }
    if (HasRole(ModuleRole::kPerLayer)) {
      const auto [input, output] = MeaningOf(i, ModuleRole::kPerLayer, branches);
      for (const char* name : {"per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"}) {
        AddBridge(i, name, input, output);
      }
    }
  }

  // Refuses names of tensors that no family has.
  void RefuseOfBlock(int i) {
    const std::string middle = Has(i, "hook_resid_mid") ? Name(i, "hook_resid_mid") : Name(i, "hook_resid_pre");
    const std::string z = absl::StrCat("; nearest: ", Name(i, "attn.hook_z"));
    Add(Name(i, "hook_mlp_in"),
        {-1,
         absl::StrCat("means two tensors: in TransformerLens the residual stream that the norm before the MLP reads, ",
                      middle, "; in SAELens's entries of Gemma Scope 2 what the MLP reads, ", points_[MlpInput(i)].name,
                      "; name one of them")});
    for (const char* name : {"attn.hook_pattern", "attn.hook_attn_scores"}) {
      Add(Name(i, name), {-1, absl::StrCat("has a row for each pair of positions, which is not captured", z,
                                           ", the values weighted by the pattern")});
    }
    Add(Name(i, "attn.hook_result"),
        {-1, absl::StrCat("has a row of the model's width for each head, which is not captured", z,
                          ", from which the output projection computes it; the sum over the heads is ",
                          Name(i, "hook_attn_out"))});
    for (const char* name : {"hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"}) {
      Add(Name(i, name),
          {-1, absl::StrCat("is a copy of the residual stream for each head, which is not captured; nearest: ",
                            Name(i, "hook_resid_pre"), ", which is the same for all heads")});
    }
  }

  int MlpInput(int i) const {
    if (const int out = OutOf(i, "ln2"); out >= 0) return out;
    if (const int middle = Index(i, "hook_resid_mid"); middle >= 0) return middle;
    const int out = OutOf(i, "ln1");
    return out >= 0 ? out : Index(i, "hook_resid_pre");
  }

  Branches BranchesOf(int i, int pre) const {
    Branches branches;
    branches.attention_input = OutOf(i, "ln1") >= 0 ? OutOf(i, "ln1") : pre;
    branches.mlp_input = MlpInput(i);
    branches.attention_output = Returned(i, "attn.hook_out", "hook_attn_out");
    branches.mlp_output = Returned(i, "mlp.hook_out", "hook_mlp_out");
    return branches;
  }
  // The output of a sublayer, before anything is done to it.
  Meaning Returned(int i, absl::string_view raw, absl::string_view added) const {
    if (Has(i, raw)) return {Index(i, raw), ""};
    if (architecture_ != "granite") return {Index(i, added), ""};
    return {-1, absl::StrCat("is not captured before it is multiplied by residual_multiplier; nearest: ",
                             Name(i, added), ", after that")};
  }

  void AddBranches(int i, int pre, const Branches& branches) {
    const int middle = Has(i, "hook_resid_mid") ? Index(i, "hook_resid_mid") : pre;
    AddBridge(i, "attn", {branches.attention_input, ""}, branches.attention_output);
    AddBridge(i, "mlp", {branches.mlp_input, ""}, branches.mlp_output);
    for (const char* attention : modules_.attention) {
      AddModule(i, attention, {branches.attention_input, ""}, branches.attention_output);
    }
    if (modules_.feed_forward[0] != '\0') {
      AddModule(i, modules_.feed_forward, {branches.mlp_input, ""}, branches.mlp_output);
    }
    AddNorm(i, "ln1", modules_.ln1, pre, OutOf(i, "ln1"));
    AddNorm(i, "ln2", modules_.ln2, middle, OutOf(i, "ln2"));
    AddNorm(i, "ln1_post", modules_.ln1_post, Index(i, "attn.hook_out"), OutOf(i, "ln1_post"));
    AddNorm(i, "ln2_post", modules_.ln2_post, Index(i, "mlp.hook_out"), OutOf(i, "ln2_post"));
  }

  void AddNorm(int i, absl::string_view bridge, absl::string_view module, int input, int output) {
    if (output < 0) return;
    AddBridge(i, bridge, {input, ""}, {output, ""});
    if (!module.empty()) AddModule(i, module, {input, ""}, {output, ""});
  }

  // A hook point of the block, or the reason why there is none.
  Meaning Inside(int i, absl::string_view name, absl::string_view otherwise) const {
    if (Has(i, name)) return {Index(i, name), ""};
    return {-1, std::string(otherwise)};
  }

  // The input and output of a module. Both are empty if the layer has no such module.
  std::pair<Meaning, Meaning> MeaningOf(int i, ModuleRole role, const Branches& branches) const {
    const Meaning attention_input{branches.attention_input, ""}, mlp_input{branches.mlp_input, ""};
    const auto nearest = [i](absl::string_view why, absl::string_view name, absl::string_view difference) {
      return Meaning{-1, absl::StrCat(why, "; nearest: ", Name(i, name), ", ", difference)};
    };
    const bool is_gated = Has(i, "mlp.hook_pre_linear");
    switch (role) {
      case ModuleRole::kQuery:
        return {attention_input, Inside(i, "attn.hook_q", "")};
      case ModuleRole::kGatedQuery:
        return {attention_input,
                nearest("holds each head's queries and their gate", "attn.hook_q", "the queries alone")};
      case ModuleRole::kLatentQuery:
        return {nearest("holds a latent, which is not captured", "attn.hook_q", "the projection of the latent"),
                Inside(i, "attn.hook_q", "")};
      case ModuleRole::kKey:
        return {attention_input, Inside(i, "attn.hook_k", "")};
      case ModuleRole::kValue:
        return {attention_input, Inside(i, "attn.hook_v", "")};
      case ModuleRole::kFusedAttention:
        return {attention_input, nearest("holds queries, keys and values side by side", "attn.hook_q",
                                         "with attn.hook_k and attn.hook_v, each separate")};
      case ModuleRole::kAttentionOut:
        return {Meaning{Index(i, "attn.hook_z"), ""}, branches.attention_output};
      case ModuleRole::kQueryNorm:
        return {Inside(i, "attn.hook_q", ""), AfterNorm(i, "hook_q", "hook_rot_q")};
      case ModuleRole::kKeyNorm:
        return {Inside(i, "attn.hook_k", ""), AfterNorm(i, "hook_k", "hook_rot_k")};
      case ModuleRole::kGate:
        return {mlp_input, Inside(i, "mlp.hook_pre", "")};
      case ModuleRole::kUp:
        return {mlp_input, Inside(i, "mlp.hook_pre_linear", "")};
      case ModuleRole::kFusedGateUp:
        return {mlp_input, nearest("holds both projections side by side", "mlp.hook_pre",
                                   "with mlp.hook_pre_linear, each separate")};
      case ModuleRole::kActivation:
        return {Inside(i, "mlp.hook_pre", ""),
                !is_gated ? Inside(i, "mlp.hook_post", "")
                          : nearest("is not captured before it is multiplied by the up projection", "mlp.hook_post",
                                    "after that")};
      case ModuleRole::kDown:
        return {Inside(i, "mlp.hook_post", ""), Has(i, "mlp.hook_post") ? branches.mlp_output : Meaning()};
      case ModuleRole::kRouter:
        return {mlp_input, Inside(i, "mlp.hook_router_logits", "")};
      case ModuleRole::kExperts:
        return {mlp_input, nearest("is not captured apart from the terms that are added to it", "hook_mlp_out",
                                   "the MLP's whole output")};
      case ModuleRole::kValueNorm:
        return {Inside(i, "attn.hook_v", ""), AfterNorm(i, "hook_v", "hook_rot_v")};
      case ModuleRole::kPerLayer: {
        const Meaning added = nearest("belongs to the layer's embedding, which is not captured", "hook_resid_post",
                                      "the sum that it is part of");
        return {added, added};
      }
      case ModuleRole::kOtherOfAttentionInput:
      case ModuleRole::kOtherOfMlpInput:
      case ModuleRole::kInnerAttention:
      case ModuleRole::kInnerMlp:
        break;
    }
    const bool is_attention = role == ModuleRole::kOtherOfAttentionInput || role == ModuleRole::kInnerAttention;
    const Meaning inner = is_attention ? nearest("is not captured", "attn.hook_z", "the last tensor inside attention")
                                       : nearest("is not captured", "hook_mlp_out", "the MLP's whole output");
    if (role == ModuleRole::kOtherOfAttentionInput) return {attention_input, inner};
    if (role == ModuleRole::kOtherOfMlpInput) return {mlp_input, inner};
    return {inner, inner};
  }

  Meaning AfterNorm(int i, absl::string_view before, absl::string_view rotated) const {
    if (!Has(i, absl::StrCat("attn.", before))) return {};
    const bool rotates = Has(i, absl::StrCat("attn.", rotated));
    return {-1, absl::StrCat("is not captured after its norm alone; nearest: ",
                             Name(i, absl::StrCat("attn.", rotates ? rotated : before)),
                             rotates ? ", after norm and rotation" : ", before the norm")};
  }

  bool HasRole(ModuleRole role) const {
    return std::any_of(modules_.inner.begin(), modules_.inner.end(),
                       [role](const InnerModule& module) { return module.role == role; });
  }

  void AddBridgesInside(int i, const Branches& branches) {
    const auto add = [&](absl::string_view name, ModuleRole role) {
      const auto [input, output] = MeaningOf(i, role, branches);
      if (output.index < 0 && output.why.empty()) return;
      AddBridge(i, name, input, output);
    };
    if (Has(i, "attn.hook_q")) {
      add("attn.q", HasRole(ModuleRole::kGatedQuery) ? ModuleRole::kGatedQuery : ModuleRole::kQuery);
      add("attn.k", ModuleRole::kKey);
      add("attn.v", ModuleRole::kValue);
      if (HasRole(ModuleRole::kQueryNorm)) {
        add("attn.q_norm", ModuleRole::kQueryNorm);
        add("attn.k_norm", ModuleRole::kKeyNorm);
        AddBridgeNorm(i, "q", AfterNorm(i, "hook_q", "hook_rot_q"));
        AddBridgeNorm(i, "k", AfterNorm(i, "hook_k", "hook_rot_k"));
      }
      if (HasRole(ModuleRole::kFusedAttention)) {
        add("attn.qkv", ModuleRole::kFusedAttention);
        Add(Name(i, "attn.hook_hidden_states"), branches.attention_output);
      }
    }
    add("attn.o", ModuleRole::kAttentionOut);
    if (HasRole(ModuleRole::kValueNorm)) add("attn.v_norm", ModuleRole::kValueNorm);
    if (HasRole(ModuleRole::kLatentQuery)) AddBridgesOfLatents(i, branches);
    Add(Name(i, "mlp.hook_router_scores"), Index(i, "mlp.hook_expert_weights"));
    if (!Has(i, "mlp.hook_pre")) {
      const auto refuse = [&](absl::string_view name, int whole, absl::string_view what) {
        Add(Name(i, name), {-1, absl::StrCat("is a tensor of each expert, which is not captured; nearest: ",
                                             points_[whole].name, ", ", what)});
      };
      refuse("mlp.hook_pre", branches.mlp_input, "the MLP's input, which TransformerLens's bridge calls by this name");
      refuse("mlp.hook_post", Index(i, "hook_mlp_out"),
             "the MLP's whole output, which TransformerLens's bridge calls by this name");
      add("mlp.gate", ModuleRole::kRouter);
      add("mlp.router", ModuleRole::kRouter);
      add("mlp.experts", ModuleRole::kExperts);
      return;
    }
    const bool is_gated = Has(i, "mlp.hook_pre_linear");
    if (is_gated) add("mlp.gate", ModuleRole::kGate);
    add("mlp.in", is_gated ? ModuleRole::kUp : ModuleRole::kGate);
    add("mlp.out", ModuleRole::kDown);
  }

  // Adds the bridge's names inside DeepSeek's attention and MLP, most of which are the names of the modules.
  void AddBridgesOfLatents(int i, const Branches& branches) {
    for (const InnerModule& module : modules_.inner) {
      absl::string_view path = module.path;
      if (!absl::ConsumePrefix(&path, "self_attn.")) continue;
      const auto [input, output] = MeaningOf(i, module.role, branches);
      AddBridge(i, absl::StrCat("attn.", path), input, output);
    }
    const Meaning latent = MeaningOf(i, ModuleRole::kInnerAttention, branches).second;
    for (const char* name :
         {"hook_q_latent", "hook_kv_latent", "q_a_layernorm.hook_normalized", "q_a_layernorm.hook_scale",
          "kv_a_layernorm.hook_normalized", "kv_a_layernorm.hook_scale"}) {
      Add(Name(i, absl::StrCat("attn.", name)), latent);
    }
    if (Has(i, "mlp.hook_pre")) {
      for (const auto& [name, role] :
           {std::pair("mlp.dense_gate", ModuleRole::kGate), std::pair("mlp.dense_in", ModuleRole::kUp),
            std::pair("mlp.dense_out", ModuleRole::kDown)}) {
        const auto [input, output] = MeaningOf(i, role, branches);
        AddBridge(i, name, input, output);
      }
      return;
    }
    const auto [read, inner] = MeaningOf(i, ModuleRole::kOtherOfMlpInput, branches);
    for (const char* name : {"", ".gate", ".in"}) AddBridge(i, absl::StrCat("mlp.shared_experts", name), read, inner);
    AddBridge(i, "mlp.shared_experts.out", inner, inner);
    for (const char* name : {"hook_pre", "hook_pre_linear", "hook_post"}) {
      Add(Name(i, absl::StrCat("mlp.shared_experts.", name)), inner);
    }
  }

  // Adds the bridge's names inside a norm of queries or keys.
  void AddBridgeNorm(int i, absl::string_view of, const Meaning& meaning) {
    Add(absl::StrCat(Name(i, "attn."), of, "_norm.hook_normalized"), meaning);
    Add(absl::StrCat(Name(i, "attn."), of, "_norm.hook_scale"), meaning);
    Add(absl::StrCat(Name(i, "attn.hook_"), of, "_normed"), meaning);
  }

  // Adds the tensors before the first block and after the last.
  void AddEnds(int last) {
    const int embed = points_.Find("hook_embed");
    const int positions = points_.Find("hook_pos_embed");
    Add("embed.hook_out", EmbeddingOf(embed));
    Add("pos_embed.hook_out", positions);
    Add("embed.hook_in", {-1, "holds token ids, which `provenance` delivers; nearest: hook_embed, their embeddings"});
    int final_out = points_.Find("ln_final.hook_out");
    if (final_out < 0) final_out = points_.Find("ln_final.hook_normalized");
    const std::string read = points_[final_out >= 0 ? final_out : last].name;
    Meaning unembedded{points_.Find(read), ""};
    if (architecture_ == "opt") {
      unembedded = {
          -1, absl::StrCat("is what project_out returns where the model has one; nearest: ", read, ", before it")};
    }
    for (const char* name : {"unembed.hook_in", "lm_head.input", "embed_out.input"}) Add(name, unembedded);
    // nanochat may subtract a part of the stream before its last norm.
    const Meaning final_in{architecture_ == "nanochat" ? -1 : last, ""};
    if (final_out >= 0) Add("ln_final.hook_in", final_in);
    Add("ln_final.hook_out", final_out);
    for (const char* name :
         {"unembed.hook_out", "hook_unembed", "lm_head", "lm_head.output", "embed_out", "embed_out.output"}) {
      Add(name, {-1, absl::StrCat("holds the logits, which are not captured; nearest: ", read,
                                  ", what the unembedding reads")});
    }
    for (const char* base : modules_.bases) {
      if (final_out >= 0) AddPath(absl::StrCat(base, modules_.ln_final), final_in, {final_out, ""});
      const std::string embedding = absl::StrCat(base, modules_.embedding);
      for (const char* output : {"", ".output"}) Add(embedding + output, EmbeddingModule(embed));
      AddPerLayerEmbedding(base, embed);
      if (modules_.position_embedding[0] == '\0') continue;
      Add(absl::StrCat(base, modules_.position_embedding), positions);
      Add(absl::StrCat(base, modules_.position_embedding, ".output"), positions);
    }
  }

  // The output of the embedding's module.
  Meaning EmbeddingOf(int embed) const {
    if (architecture_ == "granite") {
      return {-1, "is not captured before it is multiplied by embedding_multiplier; nearest: hook_embed, after that"};
    }
    if (architecture_ == "opt") {
      return {-1, "is what project_in reads where the model has one; nearest: hook_embed, after that"};
    }
    return {embed, ""};
  }
  Meaning EmbeddingModule(int embed) const {
    if (architecture_ == "gemma" || architecture_ == "gemma2") {
      return {-1, "is scaled by sqrt(width) only since transformers 5; nearest: hook_embed, which is scaled"};
    }
    return EmbeddingOf(embed);
  }

  // Adds the modules that compute Gemma 4's second embedding for each layer.
  void AddPerLayerEmbedding(const std::string& base, int embed) {
    if (architecture_ != "gemma4" && architecture_ != "gemma4_text") return;
    const Meaning second{-1,
                         "belongs to the embeddings per layer, which are not captured; nearest: hook_embed, the "
                         "one that all layers share"};
    AddPath(base + "embed_tokens_per_layer", second, second);
    AddPath(base + "per_layer_model_projection", {embed, ""}, second);
    AddPath(base + "per_layer_projection_norm", second, second);
  }

  const HookPoints& points_;
  const absl::string_view architecture_;
  const ModuleNames modules_;
  absl::flat_hash_set<std::string> known_;
  Aliases aliases_;
};

}  // namespace

Aliases AliasesOf(const HookPoints& points, absl::string_view architecture) {
  if (architecture == "torchscript") return {};
  return Collector(points, architecture).Collect();
}

HookPoints WithAliases(const HookPoints& points, absl::string_view architecture) {
  Aliases aliases = AliasesOf(points, architecture);
  return HookPoints(points.all(), {aliases.names.begin(), aliases.names.end()},
                    {aliases.refused.begin(), aliases.refused.end()});
}

}  // namespace hookline
