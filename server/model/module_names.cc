#include "server/model/module_names.h"

#include <algorithm>
#include <initializer_list>

namespace hookline {
namespace {

using Role = ModuleRole;

bool IsOneOf(absl::string_view text, std::initializer_list<absl::string_view> some) {
  return std::find(some.begin(), some.end(), text) != some.end();
}

std::vector<InnerModule> Gpt2Modules(absl::string_view architecture) {
  if (architecture == "gpt2") {
    return {{"attn.c_attn", Role::kFusedAttention},
            {"attn.c_proj", Role::kAttentionOut},
            {"mlp.c_fc", Role::kGate},
            {"mlp.act", Role::kActivation},
            {"mlp.c_proj", Role::kDown}};
  }
  if (architecture == "gpt_neo") {
    return {{"attn.attention.q_proj", Role::kQuery},
            {"attn.attention.k_proj", Role::kKey},
            {"attn.attention.v_proj", Role::kValue},
            {"attn.attention.out_proj", Role::kAttentionOut},
            {"mlp.c_fc", Role::kGate},
            {"mlp.act", Role::kActivation},
            {"mlp.c_proj", Role::kDown}};
  }
  return {{"attn.q_proj", Role::kQuery}, {"attn.k_proj", Role::kKey},
          {"attn.v_proj", Role::kValue}, {"attn.out_proj", Role::kAttentionOut},
          {"mlp.fc_in", Role::kGate},    {"mlp.act", Role::kActivation},
          {"mlp.fc_out", Role::kDown}};
}

void AddSharedExpert(const std::string& path, std::vector<InnerModule>& inner) {
  inner.insert(inner.end(), {{path, Role::kOtherOfMlpInput},
                             {path + ".gate_proj", Role::kOtherOfMlpInput},
                             {path + ".up_proj", Role::kOtherOfMlpInput},
                             {path + ".act_fn", Role::kInnerMlp},
                             {path + ".down_proj", Role::kInnerMlp}});
}

std::vector<InnerModule> PhiModules() {
  return {{"self_attn.q_proj", Role::kQuery},
          {"self_attn.k_proj", Role::kKey},
          {"self_attn.v_proj", Role::kValue},
          {"self_attn.dense", Role::kAttentionOut},
          {"self_attn.q_layernorm", Role::kQueryNorm},
          {"self_attn.k_layernorm", Role::kKeyNorm},
          {"mlp.fc1", Role::kGate},
          {"mlp.activation_fn", Role::kActivation},
          {"mlp.fc2", Role::kDown}};
}

std::vector<InnerModule> Phi3Modules() {
  return {{"self_attn.qkv_proj", Role::kFusedAttention},
          {"self_attn.o_proj", Role::kAttentionOut},
          {"mlp.gate_up_proj", Role::kFusedGateUp},
          {"mlp.activation_fn", Role::kActivation},
          {"mlp.down_proj", Role::kDown}};
}

std::vector<InnerModule> LlamaModules(absl::string_view architecture) {
  if (architecture == "nanochat") return {};  // it rotates queries and keys before their norm
  if (architecture == "phi") return PhiModules();
  if (architecture == "phi3") return Phi3Modules();
  const bool gates_queries = IsOneOf(architecture, {"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"});
  std::vector<InnerModule> inner = {{"self_attn.q_proj", gates_queries ? Role::kGatedQuery : Role::kQuery},
                                    {"self_attn.k_proj", Role::kKey},
                                    {"self_attn.v_proj", Role::kValue},
                                    {"self_attn.o_proj", Role::kAttentionOut},
                                    {"mlp.gate_proj", Role::kGate},
                                    {"mlp.up_proj", Role::kUp},
                                    {"mlp.act_fn", Role::kActivation},
                                    {"mlp.down_proj", Role::kDown},
                                    {"mlp.gate", Role::kRouter},
                                    {"mlp.router", Role::kRouter},
                                    {"mlp.experts", Role::kExperts}};
  if (gates_queries || IsOneOf(architecture, {"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "gemma4", "gemma4_text",
                                              "olmo2", "olmo3", "olmoe"})) {
    inner.insert(inner.end(), {{"self_attn.q_norm", Role::kQueryNorm}, {"self_attn.k_norm", Role::kKeyNorm}});
  }
  if (gates_queries) {
    inner.insert(inner.end(), {{"linear_attn.out_proj", Role::kAttentionOut},
                               {"linear_attn.in_proj_qkv", Role::kOtherOfAttentionInput},
                               {"linear_attn.in_proj_z", Role::kOtherOfAttentionInput},
                               {"linear_attn.in_proj_a", Role::kOtherOfAttentionInput},
                               {"linear_attn.in_proj_b", Role::kOtherOfAttentionInput},
                               {"linear_attn.conv1d", Role::kInnerAttention},
                               {"linear_attn.norm", Role::kInnerAttention}});
  }
  if (IsOneOf(architecture, {"qwen3_5_moe", "qwen3_5_moe_text"})) {
    AddSharedExpert("mlp.shared_expert", inner);
    inner.push_back({"mlp.shared_expert_gate", Role::kOtherOfMlpInput});
  }
  if (architecture == "deepseek_v3") {
    inner.erase(inner.begin() + 1, inner.begin() + 3);  // keys and values come from a latent
    inner.insert(inner.end(), {{"self_attn.q_a_proj", Role::kOtherOfAttentionInput},
                               {"self_attn.q_a_layernorm", Role::kInnerAttention},
                               {"self_attn.q_b_proj", Role::kLatentQuery},
                               {"self_attn.kv_a_proj_with_mqa", Role::kOtherOfAttentionInput},
                               {"self_attn.kv_a_layernorm", Role::kInnerAttention},
                               {"self_attn.kv_b_proj", Role::kInnerAttention}});
    AddSharedExpert("mlp.shared_experts", inner);
  }
  if (IsOneOf(architecture, {"gemma4", "gemma4_text"})) {
    inner.insert(inner.end(), {{"self_attn.v_norm", Role::kValueNorm},
                               {"act_fn", Role::kPerLayer},
                               {"per_layer_input_gate", Role::kPerLayer},
                               {"per_layer_projection", Role::kPerLayer},
                               {"post_per_layer_input_norm", Role::kPerLayer}});
  }
  return inner;
}

ModuleNames Gpt2Names(absl::string_view architecture) {
  const bool is_gptj = architecture == "gptj";
  ModuleNames names;
  names.blocks = {"transformer.h.", "h."};
  names.attention = {"attn"};
  if (architecture == "gpt_neo") names.attention.push_back("attn.attention");
  names.feed_forward = "mlp";
  names.ln1 = "ln_1";
  if (!is_gptj) names.ln2 = "ln_2";
  names.bases = {"transformer.", ""};
  names.ln_final = "ln_f";
  names.embedding = "wte";
  if (!is_gptj) names.position_embedding = "wpe";
  names.inner = Gpt2Modules(architecture);
  return names;
}

ModuleNames GptNeoxNames() {
  ModuleNames names;
  names.blocks = {"gpt_neox.layers.", "layers."};
  names.attention = {"attention"};
  names.feed_forward = "mlp";
  names.ln1 = "input_layernorm";
  names.ln2 = "post_attention_layernorm";
  names.bases = {"gpt_neox.", ""};
  names.ln_final = "final_layer_norm";
  names.embedding = "embed_in";
  names.inner = {{"attention.query_key_value", Role::kFusedAttention},
                 {"attention.dense", Role::kAttentionOut},
                 {"mlp.dense_h_to_4h", Role::kGate},
                 {"mlp.act", Role::kActivation},
                 {"mlp.dense_4h_to_h", Role::kDown}};
  return names;
}

ModuleNames OptNames() {
  ModuleNames names;
  names.blocks = {"model.decoder.layers.", "decoder.layers.", "layers."};
  names.attention = {"self_attn"};
  names.ln1 = "self_attn_layer_norm";
  names.ln2 = "final_layer_norm";
  names.bases = {"model.decoder.", "decoder.", ""};
  names.ln_final = "final_layer_norm";
  names.embedding = "embed_tokens";
  names.position_embedding = "embed_positions";
  names.inner = {{"self_attn.q_proj", Role::kQuery},
                 {"self_attn.k_proj", Role::kKey},
                 {"self_attn.v_proj", Role::kValue},
                 {"self_attn.out_proj", Role::kAttentionOut},
                 {"fc1", Role::kGate},
                 {"activation_fn", Role::kActivation},
                 {"fc2", Role::kDown}};
  return names;
}

ModuleNames LlamaNames(absl::string_view architecture) {
  ModuleNames names;
  names.blocks = {"model.layers.", "model.language_model.layers.", "language_model.layers.", "layers."};
  names.attention = {"self_attn"};
  names.feed_forward = "mlp";
  names.ln1 = "input_layernorm";
  names.ln2 = "post_attention_layernorm";
  names.bases = {"model.", "model.language_model.", "language_model.", ""};
  names.ln_final = "norm";
  names.embedding = "embed_tokens";
  names.inner = LlamaModules(architecture);
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
  if (IsOneOf(architecture, {"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})) {
    names.attention = {"self_attn", "linear_attn"};
  }
  if (architecture == "phi") {
    names.ln2 = "";
    names.ln_final = "final_layernorm";
  }
  return names;
}

}  // namespace

ModuleNames ModuleNamesOf(absl::string_view architecture) {
  if (IsOneOf(architecture, {"gpt2", "gpt_neo", "gptj"})) return Gpt2Names(architecture);
  if (architecture == "gpt_neox") return GptNeoxNames();
  if (architecture == "opt") return OptNames();
  return LlamaNames(architecture);
}

}  // namespace hookline
