// Tests configurations and weights that do not fit each other, or that ask for something Hookline does not compute.
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/model/changed_fixture.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

using FamiliesRefusedTest = ChangedFixtureTest;

TEST_F(FamiliesRefusedTest, AnotherModelTypeIsRefusedWithThoseThatAreComputed) {
  EXPECT_THAT(
      RefusalOf("llama_gqa", "model_type", "mamba"),
      AllOf(HasSubstr("model_type is \"mamba\""), HasSubstr("gpt_neox, "), HasSubstr("llama, ministral, mistral, ")));
  EXPECT_THAT(Refusal("llama_gqa", [](Json& config) { config.erase("model_type"); }),
              HasSubstr("model_type is missing"));
}

TEST_F(FamiliesRefusedTest, AnUnknownActivationIsRefusedByFieldAndValue) {
  EXPECT_THAT(RefusalOf("gpt2", "activation_function", "mish"), HasSubstr("activation_function is \"mish\""));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "hidden_act", "gelu_10"), HasSubstr("hidden_act is \"gelu_10\""));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_act", "swiglu"), HasSubstr("hidden_act is \"swiglu\""));
  EXPECT_THAT(RefusalOf("gemma", "hidden_activation", "tanh"), HasSubstr("hidden_activation is \"tanh\""));
  EXPECT_THAT(RefusalOf("gemma2", "hidden_activation", 3), HasSubstr("hidden_activation is 3; expected a string"));
}

TEST_F(FamiliesRefusedTest, AnotherRopeTypeIsRefusedInEitherFormOfTheConfig) {
  EXPECT_THAT(RefusalOf("llama_gqa", "rope_scaling", {{"rope_type", "xpos"}, {"factor", 4.0}}),
              AllOf(HasSubstr("rope_scaling.rope_type is \"xpos\""),
                    HasSubstr("default, linear, llama3, yarn and longrope are supported")));
  EXPECT_THAT(RefusalOf("qwen2", "rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}),
              AllOf(HasSubstr("rope_scaling.type is \"dynamic\""), HasSubstr("longest sequence so far")));
  EXPECT_THAT(RefusalOf("qwen3", "rope_parameters", {{"rope_type", "longrope"}}),
              HasSubstr("rope_parameters.short_factor is missing"));
  EXPECT_THAT(Refusal("phi3",
                      [](Json& config) {
                        config["rope_scaling"]["long_factor"] = {1.0, 2.0};
                      }),
              HasSubstr("long_factor has 2 entries, but 8 pairs of a head are rotated"));
  EXPECT_THAT(RefusalOf("phi3", "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}), HasSubstr("longrope"));
  EXPECT_THAT(RefusalOf("llama_gqa", "rope_scaling", {{"rope_type", "linear"}}),
              HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(RefusalOf("llama_gqa", "rope_scaling", "linear"),
              HasSubstr("rope_scaling is \"linear\"; expected an object"));
  EXPECT_THAT(Refusal("llama3_rope", [](Json& config) { config["rope_scaling"]["high_freq_factor"] = 0.5; }),
              HasSubstr("rope_scaling.high_freq_factor is 0.5; expected more than low_freq_factor 1"));
  EXPECT_THAT(RefusalOf("llama_gqa", "partial_rotary_factor", 0.5), HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(RefusalOf("qwen2", "rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}),
              HasSubstr("rope_parameters.full_attention is an object; this family has one rotation"));
}

TEST_F(FamiliesRefusedTest, QuantisedWeightsAreRefused) {
  EXPECT_THAT(RefusalOf("llama_gqa", "quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}),
              HasSubstr("quantization_config.quant_method is \"gptq\""));
  EXPECT_THAT(RefusalOfHeader("qwen2",
                              [](Json& header) {
                                Json& tensor = header["model.layers.1.mlp.up_proj.weight"];
                                tensor["dtype"] = "I32";
                              }),
              AllOf(HasSubstr("'model.layers.1.mlp.up_proj.weight'"), HasSubstr("Int"), HasSubstr("quantised")));
}

TEST_F(FamiliesRefusedTest, AWindowPatternThatDoesNotFitIsRefused) {
  EXPECT_THAT(RefusalOf("qwen3", "layer_types", {"full_attention"}),
              HasSubstr("layer_types has 1 entries, but num_hidden_layers is 3"));
  EXPECT_THAT(RefusalOf("qwen3", "layer_types", {"full_attention", "linear_attention", "full_attention"}),
              HasSubstr("layer_types[1] is \"linear_attention\""));
  EXPECT_THAT(RefusalOf("qwen3", "layer_types", {"full_attention", "sliding_attention", "full_attention"}),
              HasSubstr("layer_types[1] is \"sliding_attention\", but this model has no sliding_window"));
  EXPECT_THAT(RefusalOf("mistral", "sliding_window", 0), HasSubstr("sliding_window is 0; expected an integer from 1"));
  EXPECT_THAT(RefusalOf("gemma2", "sliding_window", nullptr),
              HasSubstr("layer 0 of this family has a window, but there is no sliding_window"));
  EXPECT_THAT(RefusalOf("olmo3", "sliding_window", nullptr), HasSubstr("layer_types[0] is \"sliding_attention\", but"));
}

TEST_F(FamiliesRefusedTest, SizesThatContradictEachOtherAreRefused) {
  EXPECT_THAT(RefusalOf("gpt2", "n_head", 5), HasSubstr("n_embd is 48; expected a multiple of n_head 5"));
  EXPECT_THAT(RefusalOf("llama_gqa", "num_key_value_heads", 3),
              HasSubstr("num_attention_heads is 4; expected a multiple of num_key_value_heads 3"));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "rotary_pct", 0.2), HasSubstr("a share of 0.2 of 16 values"));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_size", -64), HasSubstr("hidden_size is -64"));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_size", 1e300), HasSubstr("hidden_size is 1e+300"));
  EXPECT_THAT(RefusalOf("llama_gqa", "num_hidden_layers", 1000000), HasSubstr("num_hidden_layers is 1000000"));
  EXPECT_THAT(RefusalOf("llama_gqa", "rms_norm_eps", 0), HasSubstr("rms_norm_eps is 0; expected a positive number"));
  EXPECT_THAT(RefusalOf("llama_gqa", "mlp_bias", "yes"), HasSubstr("mlp_bias is \"yes\"; expected true or false"));
  EXPECT_THAT(Refusal("llama_gqa", [](Json& config) { config.erase("intermediate_size"); }),
              HasSubstr("intermediate_size is missing"));
}

TEST_F(FamiliesRefusedTest, WhatIsNotPlainCausalAttentionIsRefused) {
  EXPECT_THAT(RefusalOf("gpt2", "add_cross_attention", true), HasSubstr("add_cross_attention is true"));
  EXPECT_THAT(RefusalOf("gemma3", "use_bidirectional_attention", true),
              HasSubstr("use_bidirectional_attention is true"));
  EXPECT_THAT(Refusal("gemma4", [](Json& config) { config["text_config"]["use_bidirectional_attention"] = "all"; }),
              HasSubstr("text_config.use_bidirectional_attention is \"all\""));
  // With is_causal false, transformers 5 attends in both directions, in any family.
  for (const auto& entry : fs::directory_iterator(fs::path(HOOKLINE_FIXTURES) / "families")) {
    if (!entry.is_directory()) continue;
    EXPECT_THAT(RefusalOf(entry.path().filename(), "is_causal", false), HasSubstr("is_causal is false"));
  }
  EXPECT_THAT(Refusal("qwen3_5", [](Json& config) { config["text_config"]["is_causal"] = false; }),
              HasSubstr("text_config.is_causal is false"));
}

TEST_F(FamiliesRefusedTest, RotationsThatContradictEachOtherAreRefused) {
  const auto both = HasSubstr("both mean the same");
  // These are a model card's lines for yarn, pasted into a file of transformers 5.
  const Json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 128}};
  EXPECT_THAT(RefusalOf("mistral_rope_parameters", "rope_scaling", yarn),
              HasSubstr("rope_scaling is an object; it contradicts rope_parameters"));
  EXPECT_THAT(Refusal("gemma3",
                      [&](Json& config) {
                        config["rope_parameters"] = {{"full_attention", {{"rope_type", "default"}}}};
                      }),
              HasSubstr("rope_scaling is an object; it contradicts rope_parameters"));
  EXPECT_THAT(RefusalOf("mistral_rope_parameters", "rope_theta", 10000.0),
              AllOf(HasSubstr("rope_theta is 10000"), both));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "rope_theta", 500000.0), AllOf(HasSubstr("rope_theta is 500000"), both));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "partial_rotary_factor", 0.5), both);
  EXPECT_THAT(Refusal("llama_yarn", [](Json& config) { config["rope_scaling"]["type"] = "linear"; }),
              AllOf(HasSubstr("rope_scaling.rope_type is \"yarn\"; but type says \"linear\""), both));
  // transformers 4 reads the one, transformers 5 the other.
  EXPECT_THAT(RefusalOf("llama3_rope", "original_max_position_embeddings", 4096),
              AllOf(HasSubstr("rope_scaling.original_max_position_embeddings is"), both));
}

TEST_F(FamiliesRefusedTest, SizesThatAreGivenTwiceMustAgree) {
  const auto both = HasSubstr("both mean the same");
  EXPECT_THAT(RefusalOf("gpt2", "hidden_size", 64), AllOf(HasSubstr("hidden_size is 64; but n_embd says 48"), both));
  EXPECT_THAT(RefusalOf("gptj", "num_hidden_layers", 2), AllOf(HasSubstr("num_hidden_layers is 2"), both));
  EXPECT_THAT(RefusalOf("gpt_neo", "attention_layers", {"global"}), both);
  EXPECT_THAT(RefusalOf("qwen3_moe", "num_local_experts", 4), AllOf(HasSubstr("num_experts is 8"), both));
  EXPECT_THAT(RefusalOf("gpt_oss", "experts_per_token", 4), AllOf(HasSubstr("experts_per_token is 4"), both));
  EXPECT_THAT(RefusalOf("deepseek_v3", "num_key_value_heads", 2), both);
  EXPECT_THAT(RefusalOf("gemma2", "hidden_act", "silu"), AllOf(HasSubstr("hidden_act is \"silu\""), both));
}

TEST_F(FamiliesRefusedTest, WhatOneFamilyDoesNotComputeIsRefused) {
  EXPECT_THAT(RefusalOf("llama_gqa", "per_layer_config", {{"0", {{"head_dim", 8}}}}),
              HasSubstr("per_layer_config is an object; sizes that differ by layer"));
  EXPECT_THAT(RefusalOf("gpt_oss", "quantization_config", {{"quant_method", "awq"}}),
              HasSubstr("quantization_config.quant_method is \"awq\""));
  EXPECT_THAT(RefusalOf("qwen3_moe", "num_experts_per_tok", 9), HasSubstr("num_experts_per_tok is 9"));
  EXPECT_THAT(RefusalOf("deepseek_v3", "scoring_func", "softmax"), HasSubstr("scoring_func is \"softmax\""));
  EXPECT_THAT(RefusalOf("deepseek_v3", "n_group", 3), HasSubstr("n_group is 3; expected groups of equal size"));
  EXPECT_THAT(RefusalOf("gpt_neo", "attention_types", Json::array({Json::array({Json::array({"global"}), 3})})),
              HasSubstr("attention_types lists 3 layers, but num_layers is 4"));
  EXPECT_THAT(RefusalOf("gpt_neo", "attention_types", {"global"}), HasSubstr("an array of pairs"));
  EXPECT_THAT(RefusalOf("smollm3", "no_rope_layers", {1, 0}), HasSubstr("no_rope_layers has 2 entries"));
  EXPECT_THAT(RefusalOf("gptj", "rotary_dim", 7), HasSubstr("rotary_dim is 7; expected an even number"));
  EXPECT_THAT(Refusal("gemma4", [](Json& config) { config["text_config"]["enable_moe_block"] = true; }),
              HasSubstr("text_config.enable_moe_block is true"));
  EXPECT_THAT(Refusal("gemma4", [](Json& config) { config["text_config"]["num_kv_shared_layers"] = 5; }),
              HasSubstr("text_config.num_kv_shared_layers is 5; layer"));
  EXPECT_THAT(Refusal("qwen3_5", [](Json& config) { config["text_config"]["attn_output_gate"] = false; }),
              HasSubstr("text_config.attn_output_gate is false"));
}

TEST_F(FamiliesRefusedTest, SizesByLayerThatNoLayerCanHaveAreRefused) {
  const auto with = [&](const Json& sizes) {
    return Refusal("gemma4", [&](Json& config) { config["text_config"]["per_layer_config"] = sizes; });
  };
  EXPECT_THAT(with({{"6", {{"head_dim", 24}}}}), HasSubstr("text_config.per_layer_config.6 is an object; its name"));
  EXPECT_THAT(with({{"last", {{"head_dim", 24}}}}), HasSubstr("the number of one of 6 layers"));
  EXPECT_THAT(with({{"2", {{"head_dim", 24}}}, {"02", {{"head_dim", 24}}}}), HasSubstr("layer 2 appears twice"));
  EXPECT_THAT(with({{"2", {{"intermediate_size", 24}}}}),
              HasSubstr("per_layer_config.2.intermediate_size is 24; only head"));
  EXPECT_THAT(
      with({{"2", {{"head_dim", 12}}}, {"5", {{"head_dim", 24}}}}),
      AllOf(HasSubstr("text_config.global_head_dim is 24; but per_layer_config says 12"), HasSubstr("both mean")));
}

TEST_F(FamiliesRefusedTest, ABrokenConfigIsAnErrorAndNoCrash) {
  Use("gpt2");
  for (const std::string& text : {std::string("{"), std::string("[]"), std::string("null"), std::string(1000000, '['),
                                  "{\"model_type\": " + std::string(1000000, '[') + std::string(1000000, ']') + "}"}) {
    std::ofstream(root_ / "config.json") << text;
    EXPECT_EQ(Load().status().code(), absl::StatusCode::kFailedPrecondition) << text.substr(0, 20);
  }
}

TEST_F(FamiliesRefusedTest, AMissingWeightIsNamed) {
  const struct {
    const char* fixture;
    const char* weight;
  } cases[] = {
      {"gpt2", "transformer.h.1.attn.c_attn.bias"},
      {"gpt_neox_parallel", "gpt_neox.layers.2.mlp.dense_4h_to_h.weight"},
      {"llama_gqa", "model.norm.weight"},
      {"mistral", "model.embed_tokens.weight"},
      {"qwen2", "model.layers.0.self_attn.k_proj.bias"},
      {"qwen3", "model.layers.0.self_attn.q_norm.weight"},
      {"gemma", "model.layers.2.input_layernorm.weight"},
      {"gemma2", "model.layers.3.pre_feedforward_layernorm.weight"},
      {"gemma3", "model.layers.6.self_attn.k_norm.weight"},
      {"gemma3_multimodal", "language_model.model.layers.0.mlp.up_proj.weight"},
      {"olmo2", "model.layers.1.post_feedforward_layernorm.weight"},
      {"qwen3_moe", "model.layers.2.mlp.experts.7.down_proj.weight"},
      {"mixtral", "model.layers.0.block_sparse_moe.gate.weight"},
      {"qwen3_5", "model.language_model.layers.1.linear_attn.dt_bias"},
      {"qwen3_5_moe", "model.language_model.layers.0.mlp.shared_expert_gate.weight"},
      {"gpt_oss", "model.layers.3.self_attn.sinks"},
      {"phi3", "model.layers.0.self_attn.qkv_proj.weight"},
      {"gemma4", "model.language_model.layers.2.layer_scalar"},
      {"deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias"},
  };
  for (const auto& one : cases) {
    EXPECT_THAT(RefusalOfHeader(one.fixture,
                                [&](Json& header) {
                                  ASSERT_TRUE(header.contains(one.weight)) << one.weight;
                                  header["unheard.of"] = header[one.weight];
                                  header.erase(one.weight);
                                }),
                AllOf(HasSubstr(one.weight), HasSubstr("is missing")));
  }
}

TEST_F(FamiliesRefusedTest, ASurplusWeightIsNamed) {
  for (const char* fixture : {"gpt2", "gpt_neox_sequential", "llama_gqa", "gemma2", "olmo2"}) {
    Use(fixture);
    // With one layer less in the configuration, the weights of the last layer are surplus.
    ChangeConfig([](Json& config) {
      Json& layers = config.contains("n_layer") ? config["n_layer"] : config["num_hidden_layers"];
      layers = layers.get<int>() - 1;
    });
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("does not belong to this architecture")) << fixture;
  }
}

TEST_F(FamiliesRefusedTest, AMisshapenWeightIsNamedWithBothShapes) {
  EXPECT_THAT(
      RefusalOfHeader("llama_gqa",
                      [](Json& header) {
                        header["model.layers.1.mlp.down_proj.weight"]["shape"] = {112, 64};
                      }),
      AllOf(HasSubstr("'model.layers.1.mlp.down_proj.weight'"), HasSubstr("(112, 64)"), HasSubstr("(64, 112)")));
  Use("gpt2");
  ChangeConfig([](Json& config) { config["n_positions"] = 500; });
  EXPECT_THAT(Load().status().message(),
              AllOf(HasSubstr("'transformer.wpe.weight'"), HasSubstr("(512, 48)"), HasSubstr("(500, 48)")));
}

TEST_F(FamiliesRefusedTest, AFolderWithoutSafetensorsSaysWhichFilesAreWanted) {
  Use("gpt2");
  fs::remove(root_ / "model.safetensors");
  const absl::Status status = Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("model.safetensors.index.json"));
}

}  // namespace
}  // namespace hookline
