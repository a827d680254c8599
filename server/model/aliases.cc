#include "server/model/aliases.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace hookline {
namespace {

// The names that transformers gives to the modules of an architecture.
struct ModuleNames {
  std::vector<const char*> blocks;  // what stands before the block's number
  const char* attention;
  const char* feed_forward;
  const char* ln1;
  const char* ln2;       // empty: the architecture has none
  const char* ln1_post;  // empty: none; so for the next
  const char* ln2_post;
  std::vector<const char*> bases;  // what stands before the two that follow
  const char* ln_final;
  const char* embedding;
  // Says which projections are modules of their own, whose values nothing changes before Hookline takes them.
  enum class Projections { kNone, kLlama, kGpt2 } projections = Projections::kNone;
};
using Projections = ModuleNames::Projections;

bool IsOneOf(absl::string_view text, std::initializer_list<absl::string_view> some) {
  return std::find(some.begin(), some.end(), text) != some.end();
}

ModuleNames NamesIn(absl::string_view architecture) {
  if (IsOneOf(architecture, {"gpt2", "gpt_neo", "gptj"})) {
    return {{"transformer.h.", "h."},
            "attn",
            "mlp",
            "ln_1",
            "ln_2",
            "",
            "",
            {"transformer.", ""},
            "ln_f",
            "wte",
            architecture == "gpt2" ? Projections::kGpt2 : Projections::kNone};
  }
  if (architecture == "gpt_neox") {
    return {{"gpt_neox.layers.", "layers."},
            "attention",
            "mlp",
            "input_layernorm",
            "post_attention_layernorm",
            "",
            "",
            {"gpt_neox.", ""},
            "final_layer_norm",
            "embed_in",
            Projections::kNone};
  }
  if (architecture == "opt") {
    return {{"model.decoder.layers.", "decoder.layers.", "layers."},
            "self_attn",
            "",
            "self_attn_layer_norm",
            "final_layer_norm",
            "",
            "",
            {"model.decoder.", "decoder.", ""},
            "final_layer_norm",
            "",
            Projections::kNone};
  }
  ModuleNames names{{"model.layers.", "model.language_model.layers.", "language_model.layers.", "layers."},
                    "self_attn",
                    "mlp",
                    "input_layernorm",
                    "post_attention_layernorm",
                    "",
                    "",
                    {"model.", "model.language_model.", "language_model.", ""},
                    "norm",
                    "embed_tokens",
                    Projections::kNone};
  if (IsOneOf(architecture, {"gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text"})) {
    names.ln1_post = "post_attention_layernorm";
    names.ln2 = "pre_feedforward_layernorm";
    names.ln2_post = "post_feedforward_layernorm";
  }
  if (IsOneOf(architecture, {"olmo2", "olmo3"})) {
    names.ln1 = names.ln2 = "";
    names.ln1_post = "post_attention_layernorm";
    names.ln2_post = "post_feedforward_layernorm";
  }
  if (architecture == "phi") names.ln_final = "final_layernorm";
  if (IsOneOf(architecture, {"llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
                             "gemma3_text", "olmo2", "olmo3", "smollm3"})) {
    names.projections = Projections::kLlama;
  }
  return names;
}

class Collector {
 public:
  Collector(const HookPoints& points, absl::string_view architecture)
      : points_(points), architecture_(architecture), modules_(NamesIn(architecture)) {}

  Aliases Collect() {
    if (points_.Find("blocks.0.hook_resid_pre") < 0) return {};
    for (int i = 0; Has(i, "hook_resid_pre"); ++i) AddBlock(i);
    AddEnds();
    std::stable_sort(aliases_.names.begin(), aliases_.names.end(),
                     [](const auto& a, const auto& b) { return a.second < b.second; });
    return std::move(aliases_);
  }

 private:
  bool Has(int block, absl::string_view name) const { return Index(block, name) >= 0; }
  int Index(int block, absl::string_view name) const { return points_.Find(absl::StrCat("blocks.", block, ".", name)); }
  // The output of a norm: before the weight where it has none. -1 without the norm.
  int OutOf(int block, absl::string_view norm) const {
    const int out = Index(block, absl::StrCat(norm, ".hook_out"));
    return out >= 0 ? out : Index(block, absl::StrCat(norm, ".hook_normalized"));
  }

  void Add(std::string name, int index) {
    if (index < 0 || points_[index].name == name || !known_.insert(name).second) return;
    aliases_.names.emplace_back(std::move(name), index);
  }
  void Refuse(std::string name, std::string why) {
    if (points_.Find(name) >= 0 || !known_.insert(name).second) return;
    aliases_.refused.emplace_back(std::move(name), std::move(why));
  }

  // The module's path below each way to the block; empty: the block itself.
  void AddModule(int block, absl::string_view module, int input, int output) {
    for (const char* blocks : modules_.blocks) {
      const std::string path = absl::StrCat(blocks, block, module.empty() ? "" : ".", module);
      Add(path + ".input", input);
      Add(path + ".output", output);
      Add(path, output);
    }
  }
  void RefuseModule(int block, absl::string_view module, const std::string& why) {
    for (const char* blocks : modules_.blocks) {
      const std::string path = absl::StrCat(blocks, block, ".", module);
      Refuse(path + ".output", why);
      Refuse(path, why);
    }
  }

  void AddBlock(int i) {
    const auto name = [i](absl::string_view rest) { return absl::StrCat("blocks.", i, ".", rest); };
    const int pre = Index(i, "hook_resid_pre");
    const int post = Index(i, "hook_resid_post");
    Add(name("hook_attn"), Index(i, "hook_attn_out"));
    Add(name("hook_mlp"), Index(i, "hook_mlp_out"));
    Add(name("hook_in"), pre);
    Add(name("hook_out"), post);
    AddModule(i, "", pre, post);
    Refuse(name("hook_mlp_in"),
           absl::StrCat(
               "means two tensors: in TransformerLens the residual stream that the norm before the MLP reads, ",
               Has(i, "hook_resid_mid") ? name("hook_resid_mid") : name("hook_resid_pre"),
               "; in SAELens's entries of Gemma Scope 2 what the MLP reads, ", MlpInput(i), "; name one of them"));
    for (const char* missing : {"attn.hook_pattern", "attn.hook_attn_scores"}) {
      Refuse(name(missing), absl::StrCat("has a row for each pair of positions, which is not captured; nearest: ",
                                         name("attn.hook_z"), ", what the pattern makes of the values"));
    }
    for (const char* norm : {"ln1", "ln2"}) {
      Refuse(absl::StrCat(name(norm), ".hook_scale"),
             absl::StrCat("is not captured; nearest: ", name(norm),
                          ".hook_normalized, which is the norm's input divided by it"));
    }
    const int ln1 = Index(i, "ln1.hook_normalized");
    // Norms after the residual sums read and write other tensors than their names say elsewhere.
    if (ln1 >= 0 && ln1 > Index(i, "hook_attn_out")) return;
    AddBranches(i, pre);
  }

  std::string MlpInput(int i) const {
    const int index = MlpInputIndex(i);
    return points_[index].name;
  }
  int MlpInputIndex(int i) const {
    if (const int out = OutOf(i, "ln2"); out >= 0) return out;
    if (const int middle = Index(i, "hook_resid_mid"); middle >= 0) return middle;
    const int out = OutOf(i, "ln1");
    return out >= 0 ? out : Index(i, "hook_resid_pre");
  }

  void AddBranches(int i, int pre) {
    const auto name = [i](absl::string_view rest) { return absl::StrCat("blocks.", i, ".", rest); };
    const int middle = Has(i, "hook_resid_mid") ? Index(i, "hook_resid_mid") : pre;
    const int attention_input = OutOf(i, "ln1") >= 0 ? OutOf(i, "ln1") : pre;
    AddBranch(i, "attn", modules_.attention, attention_input, "hook_attn_out");
    AddBranch(i, "mlp", modules_.feed_forward, MlpInputIndex(i), "hook_mlp_out");
    AddNorm(i, "ln1", modules_.ln1, pre, OutOf(i, "ln1"));
    AddNorm(i, "ln2", modules_.ln2, middle, OutOf(i, "ln2"));
    AddNorm(i, "ln1_post", modules_.ln1_post, Index(i, "attn.hook_out"), Index(i, "hook_attn_out"));
    AddNorm(i, "ln2_post", modules_.ln2_post, Index(i, "mlp.hook_out"), Index(i, "hook_mlp_out"));
    Add(name("attn.o.hook_in"), Index(i, "attn.hook_z"));
    Add(name("mlp.out.hook_in"), Index(i, "mlp.hook_post"));
    if (Has(i, "mlp.hook_pre_linear")) {
      Add(name("mlp.gate.hook_out"), Index(i, "mlp.hook_pre"));
      Add(name("mlp.in.hook_out"), Index(i, "mlp.hook_pre_linear"));
    } else {
      Add(name("mlp.in.hook_out"), Index(i, "mlp.hook_pre"));
    }
    if (modules_.projections != Projections::kNone) {
      Add(name("attn.q.hook_out"), Index(i, "attn.hook_q"));
      Add(name("attn.k.hook_out"), Index(i, "attn.hook_k"));
      Add(name("attn.v.hook_out"), Index(i, "attn.hook_v"));
    }
    AddProjections(i);
  }

  // The input and output of a branch, by the bridge and by its module.
  void AddBranch(int i, absl::string_view bridge, absl::string_view module, int input, absl::string_view added) {
    const std::string raw = absl::StrCat("blocks.", i, ".", bridge, ".hook_out");
    const int out = Index(i, added);
    Add(absl::StrCat("blocks.", i, ".", bridge, ".hook_in"), input);
    const bool is_scaled = architecture_ == "granite";
    const int returned = points_.Find(raw) >= 0 ? points_.Find(raw) : is_scaled ? -1 : out;
    Add(raw, returned);
    if (returned < 0) {
      const std::string why =
          absl::StrCat("is not captured before it is multiplied by residual_multiplier; nearest: ", points_[out].name,
                       ", after that");
      Refuse(raw, why);
      if (!module.empty()) RefuseModule(i, module, why);
    }
    if (!module.empty()) AddModule(i, module, input, returned);
  }

  void AddNorm(int i, absl::string_view bridge, absl::string_view module, int input, int output) {
    if (output < 0 || !Has(i, absl::StrCat(bridge, ".hook_normalized"))) return;
    Add(absl::StrCat("blocks.", i, ".", bridge, ".hook_in"), input);
    Add(absl::StrCat("blocks.", i, ".", bridge, ".hook_out"), output);
    if (!module.empty()) AddModule(i, module, input, output);
  }

  void AddProjections(int i) {
    const auto add = [&](absl::string_view path, const char* name) {
      for (const char* blocks : modules_.blocks) Add(absl::StrCat(blocks, i, ".", path), Index(i, name));
    };
    if (modules_.projections == Projections::kLlama) {
      for (const auto& [module, name] : {std::pair("q_proj", "attn.hook_q"), std::pair("k_proj", "attn.hook_k"),
                                         std::pair("v_proj", "attn.hook_v")}) {
        add(absl::StrCat("self_attn.", module), name);
        add(absl::StrCat("self_attn.", module, ".output"), name);
      }
      add("self_attn.o_proj.input", "attn.hook_z");
      add("mlp.gate_proj", "mlp.hook_pre");
      add("mlp.gate_proj.output", "mlp.hook_pre");
      add("mlp.up_proj", "mlp.hook_pre_linear");
      add("mlp.up_proj.output", "mlp.hook_pre_linear");
      add("mlp.down_proj.input", "mlp.hook_post");
    } else if (modules_.projections == Projections::kGpt2) {
      add("attn.c_proj.input", "attn.hook_z");
      add("mlp.c_fc", "mlp.hook_pre");
      add("mlp.c_fc.output", "mlp.hook_pre");
      add("mlp.c_proj.input", "mlp.hook_post");
    }
  }

  // The tensors before the first block and after the last.
  void AddEnds() {
    const int embed = points_.Find("hook_embed");
    Add("embed.hook_out", embed);
    Add("pos_embed.hook_out", points_.Find("hook_pos_embed"));
    int final_out = points_.Find("ln_final.hook_out");
    if (final_out < 0) final_out = points_.Find("ln_final.hook_normalized");
    Add("unembed.hook_in", final_out);
    Add("ln_final.hook_out", final_out);
    const std::string nearest =
        final_out < 0 ? "" : absl::StrCat("; nearest: ", points_[final_out].name, ", what the unembedding reads");
    for (const char* name : {"unembed.hook_out", "lm_head", "lm_head.output", "embed_out"}) {
      Refuse(name, absl::StrCat("holds the logits, which are not captured", nearest));
    }
    const bool embeds_otherwise = absl::StartsWith(architecture_, "gemma") || architecture_ == "granite" ||
                                  architecture_ == "nanochat" || architecture_ == "opt";
    for (const char* base : modules_.bases) {
      Add(absl::StrCat(base, modules_.ln_final), final_out);
      Add(absl::StrCat(base, modules_.ln_final, ".output"), final_out);
      if (embeds_otherwise || modules_.embedding[0] == '\0') continue;
      Add(absl::StrCat(base, modules_.embedding), embed);
      Add(absl::StrCat(base, modules_.embedding, ".output"), embed);
    }
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
