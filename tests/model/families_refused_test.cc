// Configurations and weights that do not fit each other or ask for what is not computed.
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/model/parity.h"
#include "tests/model/scratch_folder.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A copy of a fixture whose config.json and safetensors header a test can change.
class FamiliesRefusedTest : public ScratchFolderTest {
 protected:
  void Use(const std::string& fixture) {
    fs::remove_all(root_);
    fs::create_directories(root_);
    for (const auto& entry : fs::directory_iterator(fs::path(HOOKLINE_FIXTURES) / "families" / fixture)) {
      if (entry.path().filename() != "reference.safetensors") fs::copy(entry.path(), root_);
    }
  }

  void ChangeConfig(const std::function<void(Json& config)>& change) {
    Json config = Json::parse(std::ifstream(root_ / "config.json"));
    change(config);
    std::ofstream(root_ / "config.json") << config;
  }

  // The names and shapes in model.safetensors; its data stays.
  void ChangeHeader(const std::function<void(Json& header)>& change) {
    std::ifstream in(root_ / "model.safetensors", std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    Json header = Json::parse(bytes.substr(8, length));
    change(header);
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t new_length = text.size();
    std::ofstream out(root_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&new_length), sizeof(new_length));
    out << text << bytes.substr(8 + length);
  }

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    ModelOptions options;
    options.path = root_;
    options.device = "cpu";
    return LoadModel(options);
  }

  // What is said of the fixture once its config.json was changed.
  std::string Refusal(const std::string& fixture, const std::function<void(Json& config)>& change) {
    Use(fixture);
    ChangeConfig(change);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << fixture << ": " << status;
    EXPECT_THAT(status.message(), HasSubstr("config.json: ")) << fixture;
    return std::string(status.message());
  }

  std::string RefusalOf(const std::string& fixture, const std::string& key, const Json& value) {
    return Refusal(fixture, [&](Json& config) { config[key] = value; });
  }

  std::string RefusalOfHeader(const std::string& fixture, const std::function<void(Json& header)>& change) {
    Use(fixture);
    ChangeHeader(change);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << fixture << ": " << status;
    return std::string(status.message());
  }
};

TEST_F(FamiliesRefusedTest, AnotherModelTypeIsRefusedWithThoseThatAreComputed) {
  EXPECT_THAT(RefusalOf("llama_gqa", "model_type", "mamba"),
              AllOf(HasSubstr("model_type is \"mamba\""), HasSubstr("gpt_neox, "), HasSubstr("llama, mistral, ")));
  EXPECT_THAT(Refusal("llama_gqa", [](Json& config) { config.erase("model_type"); }),
              HasSubstr("model_type is missing"));
}

TEST_F(FamiliesRefusedTest, AnUnknownActivationIsRefusedByFieldAndValue) {
  EXPECT_THAT(RefusalOf("gpt2", "activation_function", "mish"), HasSubstr("activation_function is \"mish\""));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "hidden_act", "gelu_10"), HasSubstr("hidden_act is \"gelu_10\""));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_act", "swiglu"), HasSubstr("hidden_act is \"swiglu\""));
  EXPECT_THAT(RefusalOf("gemma", "hidden_activation", "tanh"), HasSubstr("hidden_activation is \"tanh\""));
  EXPECT_THAT(RefusalOf("gemma2", "hidden_activation", 3), HasSubstr("hidden_activation is 3; a string is wanted"));
}

TEST_F(FamiliesRefusedTest, AnotherRopeTypeIsRefusedInEitherFormOfTheConfig) {
  EXPECT_THAT(RefusalOf("llama_gqa", "rope_scaling", {{"rope_type", "xpos"}, {"factor", 4.0}}),
              AllOf(HasSubstr("rope_scaling.rope_type is \"xpos\""),
                    HasSubstr("default, linear, llama3, yarn and longrope are computed")));
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
  EXPECT_THAT(RefusalOf("llama_gqa", "rope_scaling", "linear"), HasSubstr("rope_scaling is \"linear\"; an object"));
  EXPECT_THAT(Refusal("llama3_rope", [](Json& config) { config["rope_scaling"]["high_freq_factor"] = 0.5; }),
              HasSubstr("rope_scaling.high_freq_factor is 0.5; more than low_freq_factor 1 is wanted"));
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
  EXPECT_THAT(RefusalOf("mistral", "sliding_window", 0), HasSubstr("sliding_window is 0; an integer from 1"));
}

TEST_F(FamiliesRefusedTest, SizesThatContradictEachOtherAreRefused) {
  EXPECT_THAT(RefusalOf("gpt2", "n_head", 5), HasSubstr("n_embd is 48; a multiple of n_head 5 is wanted"));
  EXPECT_THAT(RefusalOf("llama_gqa", "num_key_value_heads", 3),
              HasSubstr("num_attention_heads is 4; a multiple of num_key_value_heads 3 is wanted"));
  EXPECT_THAT(RefusalOf("gpt_neox_parallel", "rotary_pct", 0.2), HasSubstr("a share of 0.2 of 16 values"));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_size", -64), HasSubstr("hidden_size is -64"));
  EXPECT_THAT(RefusalOf("llama_gqa", "hidden_size", 1e300), HasSubstr("hidden_size is 1e+300"));
  EXPECT_THAT(RefusalOf("llama_gqa", "num_hidden_layers", 1000000), HasSubstr("num_hidden_layers is 1000000"));
  EXPECT_THAT(RefusalOf("llama_gqa", "rms_norm_eps", 0), HasSubstr("rms_norm_eps is 0; a positive number"));
  EXPECT_THAT(RefusalOf("llama_gqa", "mlp_bias", "yes"), HasSubstr("mlp_bias is \"yes\"; true or false"));
  EXPECT_THAT(Refusal("llama_gqa", [](Json& config) { config.erase("intermediate_size"); }),
              HasSubstr("intermediate_size is missing"));
}

TEST_F(FamiliesRefusedTest, WhatIsNotPlainCausalAttentionIsRefused) {
  EXPECT_THAT(RefusalOf("gpt2", "add_cross_attention", true), HasSubstr("add_cross_attention is true"));
  EXPECT_THAT(RefusalOf("gemma3", "use_bidirectional_attention", true),
              HasSubstr("use_bidirectional_attention is true"));
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
    // One more norm, of which the configuration of one layer less knows nothing.
    ChangeConfig([](Json& config) {
      Json& layers = config.contains("n_layer") ? config["n_layer"] : config["num_hidden_layers"];
      layers = layers.get<int>() - 1;
    });
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("is not one of this architecture's")) << fixture;
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

// Flags that no fixture sets; each must change what is computed, or two models would be taken for one.
TEST_F(FamiliesRefusedTest, FlagsThatNoFixtureSetsChangeTheActivations) {
  const at::Tensor ids = at::arange(60, at::kLong).unsqueeze(0);
  const auto last_layer = [&] {
    auto model = Load();
    EXPECT_TRUE(model.ok()) << model.status();
    return RunModel(**model, ids, {(*model)->hook_points().size() - 1})[0];
  };
  const struct {
    const char* fixture;
    const char* key;
    Json value;
  } cases[] = {
      {"gpt2", "scale_attn_by_inverse_layer_idx", true},
      {"gpt2", "scale_attn_weights", false},
      {"qwen2", "use_sliding_window", true},
      {"mistral", "sliding_window", nullptr},
      {"gemma2", "attn_logit_softcapping", nullptr},
      {"gemma2", "layer_types", {"full_attention", "full_attention", "full_attention", "full_attention"}},
  };
  for (const auto& one : cases) {
    Use(one.fixture);
    const at::Tensor before = last_layer();
    ChangeConfig([&](Json& config) { config[one.key] = one.value; });
    const at::Tensor after = last_layer();
    EXPECT_GT((after - before).norm().item<double>(), 1e-3 * before.norm().item<double>())
        << one.fixture << " " << one.key;
  }
}

TEST_F(FamiliesRefusedTest, BothFormsOfAConfigMeanTheSame) {
  const at::Tensor ids = at::arange(100, at::kLong).unsqueeze(0);
  const auto last_layer = [&] {
    auto model = Load();
    EXPECT_TRUE(model.ok()) << model.status();
    return RunModel(**model, ids, {(*model)->hook_points().size() - 1})[0];
  };
  Use("gemma3");
  const at::Tensor published = last_layer();
  ChangeConfig([](Json& config) {
    for (const char* key : {"rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"}) {
      config.erase(key);
    }
    config["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
                                 {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
    config["layer_types"] = {"sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                             "sliding_attention", "full_attention",    "sliding_attention"};
  });
  EXPECT_TRUE(at::equal(last_layer(), published));

  Use("gpt_neox_parallel");
  const at::Tensor pythia = last_layer();
  ChangeConfig([](Json& config) {
    config.erase("rotary_pct");
    config.erase("rotary_emb_base");
    config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}};
  });
  EXPECT_TRUE(at::equal(last_layer(), pythia));

  Use("llama3_rope");
  const at::Tensor llama = last_layer();
  ChangeConfig([](Json& config) {
    config["rope_parameters"] = config["rope_scaling"];
    config["rope_parameters"]["rope_theta"] = config["rope_theta"];
    config.erase("rope_scaling");
    config.erase("rope_theta");
  });
  EXPECT_TRUE(at::equal(last_layer(), llama));
}

}  // namespace
}  // namespace hookline
