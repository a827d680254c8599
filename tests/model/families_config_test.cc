// Tests what a config.json can leave out, say in another form or say twice, and layouts of weights that mean the same.
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "server/model/families/mxfp4.h"
#include "server/model/load.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/torch_checkpoint.h"
#include "server/model/load/weight_reader.h"
#include "tests/model/changed_fixture.h"
#include "tests/model/parity.h"

namespace hookline {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::HasSubstr;

using Tensors = std::map<std::string, at::Tensor>;

class FamiliesConfigTest : public ChangedFixtureTest {
 protected:
  // Replaces model.safetensors with the tensors that `change` makes of its own.
  void ChangeWeights(const std::function<void(Tensors& tensors)>& change) {
    Tensors tensors;
    {
      const auto file = ReadSafetensors(root_ / "model.safetensors");
      ASSERT_TRUE(file.ok()) << file.status();
      WeightReader reader(*file);
      for (const auto& [name, tensor] : file->tensors) {
        const absl::StatusOr<at::Tensor> values = reader.Read(name, tensor.scalar_type());
        ASSERT_TRUE(values.ok()) << values.status();
        tensors[name] = *values;
      }
    }
    change(tensors);
    WriteWeights(tensors);
  }

  void WriteWeights(const Tensors& tensors) {
    Json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const at::Tensor values = tensor.contiguous();
      const char* type = values.scalar_type() == at::kFloat ? "F32" : values.scalar_type() == at::kByte ? "U8" : "BF16";
      header[name] = {{"dtype", type},
                      {"shape", values.sizes().vec()},
                      {"data_offsets", {data.size(), data.size() + values.nbytes()}}};
      data.append(static_cast<const char*>(values.data_ptr()), values.nbytes());
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t length = text.size();
    std::ofstream out(root_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof(length));
    out << text << data;
  }

  // Returns the number of bytes that CountWeights expects the weights to take.
  int64_t Bytes() {
    ModelOptions options;
    options.path = root_;
    options.device = "cpu";
    const auto need = CountWeights(options);
    EXPECT_TRUE(need.ok()) << need.status();
    return need.ok() ? need->front().bytes : 0;
  }
};

// No fixture sets these flags. Each must change the activations; otherwise it is ignored by mistake.
TEST_F(FamiliesConfigTest, FlagsThatNoFixtureSetsChangeTheActivations) {
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
    const at::Tensor before = LastValue();
    ChangeConfig([&](Json& config) { config[one.key] = one.value; });
    const at::Tensor after = LastValue();
    EXPECT_GT((after - before).norm().item<double>(), 1e-3 * before.norm().item<double>())
        << one.fixture << " " << one.key;
  }
}

TEST_F(FamiliesConfigTest, BothFormsOfAConfigMeanTheSame) {
  Use("gemma3");
  const at::Tensor published = LastValue();
  ChangeConfig([](Json& config) {
    for (const char* key : {"rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"}) {
      config.erase(key);
    }
    config["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
                                 {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
    config["layer_types"] = {"sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                             "sliding_attention", "full_attention",    "sliding_attention"};
  });
  EXPECT_TRUE(at::equal(LastValue(), published));

  Use("gpt_neox_parallel");
  const at::Tensor pythia = LastValue();
  ChangeConfig([](Json& config) {
    config.erase("rotary_pct");
    config.erase("rotary_emb_base");
    config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}};
  });
  EXPECT_TRUE(at::equal(LastValue(), pythia));

  Use("llama3_rope");
  const at::Tensor llama = LastValue();
  ChangeConfig([](Json& config) {
    config["rope_parameters"] = config["rope_scaling"];
    config["rope_parameters"]["rope_theta"] = config["rope_theta"];
    config.erase("rope_scaling");
    config.erase("rope_theta");
  });
  EXPECT_TRUE(at::equal(LastValue(), llama));
}

TEST_F(FamiliesConfigTest, AWindowThatIsNullIsNoneEvenWhereWindowsAreSwitchedOn) {
  Use("qwen2");
  ChangeConfig([](Json& config) { config["use_sliding_window"] = false; });
  const at::Tensor without = LastValue();
  ChangeConfig([](Json& config) {
    config["use_sliding_window"] = true;
    config["sliding_window"] = nullptr;
  });
  EXPECT_TRUE(at::equal(LastValue(), without));
}

TEST_F(FamiliesConfigTest, ARotationThatIsGivenTwiceAlikeLoads) {
  Use("mistral_rope_parameters");
  const at::Tensor once = LastValue();
  ChangeConfig([](Json& config) {
    config["rope_scaling"] = config["rope_parameters"];
    config["rope_theta"] = config["rope_parameters"]["rope_theta"];
  });
  EXPECT_TRUE(at::equal(LastValue(), once));
  Use("llama3_rope");
  const at::Tensor llama = LastValue();
  ChangeConfig([](Json& config) {
    config["original_max_position_embeddings"] = config["rope_scaling"]["original_max_position_embeddings"];
  });
  EXPECT_TRUE(at::equal(LastValue(), llama));
}

TEST_F(FamiliesConfigTest, WithoutAnOriginalContextScalingStartsFromThatOfTheModel) {
  Use("llama3_rope");
  ChangeConfig([](Json& config) {
    config["rope_scaling"]["original_max_position_embeddings"] = config["max_position_embeddings"];
  });
  const at::Tensor given = LastValue();
  ChangeConfig([](Json& config) { config["rope_scaling"].erase("original_max_position_embeddings"); });
  EXPECT_TRUE(at::equal(LastValue(), given));
}

TEST_F(FamiliesConfigTest, Gemma3TakesRopeParametersOfOneKindAndIgnoresFlatOnes) {
  Use("gemma3");
  ChangeConfig([](Json& config) {
    config.erase("rope_scaling");
    config["rope_theta"] = 1e6;
    config["rope_local_base_freq"] = 1e4;
  });
  const at::Tensor unscaled = LastValue();
  for (const Json& parameters :
       {Json{{"rope_type", "default"}, {"rope_theta", 5e5}}, Json{{"full_attention", {{"rope_type", "default"}}}},
        Json{{"sliding_attention", {{"rope_type", "default"}}}}}) {
    ChangeConfig([&](Json& config) { config["rope_parameters"] = parameters; });
    EXPECT_TRUE(at::equal(LastValue(), unscaled)) << parameters;
  }
}

TEST_F(FamiliesConfigTest, NamesOfTheSameActivationMeanTheSame) {
  const struct {
    const char* fixture;
    const char* key;
    const char* name;
    const char* alias;
  } cases[] = {{"llama_gqa", "hidden_act", "silu", "swish"},
               {"gpt_neox_parallel", "hidden_act", "gelu", "gelu_python"},
               {"gpt2", "activation_function", "gelu_new", "gelu_accurate"}};
  for (const auto& one : cases) {
    Use(one.fixture);
    ChangeConfig([&](Json& config) { config[one.key] = one.name; });
    const at::Tensor expected = LastValue();
    ChangeConfig([&](Json& config) { config[one.key] = one.alias; });
    EXPECT_TRUE(at::equal(LastValue(), expected)) << one.alias;
  }
  for (const char* computed : {"quick_gelu", "relu2"}) {
    ChangeConfig([&](Json& config) { config["activation_function"] = computed; });
    EXPECT_TRUE(Load().ok()) << computed;
  }
}

TEST_F(FamiliesConfigTest, CodeOfTheCheckpointsOwnIsWarnedOf) {
  Use("llama_gqa");
  ChangeConfig([](Json& config) { config["auto_map"] = {{"AutoModelForCausalLM", "modeling.Other"}}; });
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->info().warning, HasSubstr("auto_map"));
}

TEST_F(FamiliesConfigTest, MoreTokensThanTheModelWasMadeForAreAllowedWherePositionsAreRotations) {
  Use("llama_gqa");
  const auto as_said = Load();
  const auto longer = Load(/*max_sequence_length=*/4096);
  ASSERT_TRUE(as_said.ok() && longer.ok());
  EXPECT_LT((*as_said)->info().context_length, 4096);
  EXPECT_EQ((*longer)->info().context_length, 4096);
  EXPECT_THAT((*longer)->info().warning, HasSubstr("sequences of up to 4096 tokens are allowed"));
  EXPECT_EQ((*longer)->info().fingerprint, (*as_said)->info().fingerprint);
  RunModel(**longer, at::zeros({1, (*as_said)->info().context_length + 1}, at::kLong), {0});
  Use("gpt2");
  const auto learned = Load(/*max_sequence_length=*/4096);
  ASSERT_TRUE(learned.ok());
  EXPECT_EQ((*learned)->info().context_length, 512);
}

TEST_F(FamiliesConfigTest, GptNeoxLoadsWithTheHeadThatTransformers5Writes) {
  Use("gpt_neox_parallel");
  const at::Tensor before = LastValue();
  ChangeHeader([](Json& header) {
    header["lm_head.weight"] = header["embed_out.weight"];
    header.erase("embed_out.weight");
  });
  EXPECT_TRUE(at::equal(LastValue(), before));
}

TEST_F(FamiliesConfigTest, Mistral3IsTheMistralInsideIt) {
  Use("mistral");
  const at::Tensor alone = LastValue();
  ChangeConfig([](Json& config) {
    Json text = config;
    config = {{"model_type", "mistral3"}, {"text_config", text}};
  });
  ChangeHeader([](Json& header) {
    Json renamed;
    for (const auto& [name, tensor] : header.items()) {
      if (name != "__metadata__") renamed["language_model." + name] = tensor;
    }
    header = renamed;
  });
  EXPECT_TRUE(at::equal(LastValue(), alone));
}

TEST_F(FamiliesConfigTest, MinistralIsAMistralWhoseLayersHaveKinds) {
  Use("mistral");
  const at::Tensor windowed = LastValue();
  ChangeConfig([](Json& config) { config["model_type"] = "ministral"; });
  EXPECT_TRUE(at::equal(LastValue(), windowed));
  ChangeConfig([](Json& config) { config["layer_types"] = {"sliding_attention", "full_attention", "full_attention"}; });
  EXPECT_FALSE(at::equal(LastValue(), windowed));
}

// transformers 5.24 writes sizes by layer, with leading zeros if there are more than ten layers.
TEST_F(FamiliesConfigTest, Gemma4TakesTheSizesOfItsLayersInEitherForm) {
  Use("gemma4");
  const at::Tensor published = LastValue();
  for (const std::string zeros : {"", "0", "00"}) {
    Use("gemma4");
    ChangeConfig([&](Json& config) {
      Json& text = config["text_config"];
      text.erase("global_head_dim");
      text["per_layer_config"] = {{zeros + "2", {{"head_dim", 24}}}, {zeros + "5", {{"head_dim", 24}}}};
    });
    EXPECT_TRUE(at::equal(LastValue(), published)) << zeros;
  }
}

// nanochat's own trainer and transformers write its first models in different forms.
TEST_F(FamiliesConfigTest, NanochatLoadsAsTransformersWritesIt) {
  ModelOptions options;
  options.path = std::string(HOOKLINE_FIXTURES) + "/nanochat/A-gqa";
  options.device = "cpu";
  const auto own = LoadModel(options);
  ASSERT_TRUE(own.ok()) << own.status();
  const ModelInfo& info = (*own)->info();
  std::string checkpoint;
  for (const auto& entry : fs::directory_iterator(options.path)) {
    if (entry.path().extension() == ".pt") checkpoint = entry.path();
  }
  const auto state = ReadTorchCheckpoint(checkpoint);
  ASSERT_TRUE(state.ok()) << state.status();
  const std::map<std::string, std::string> names = {
      {"attn.c_q", "self_attn.q_proj"},    {"attn.c_k", "self_attn.k_proj"}, {"attn.c_v", "self_attn.v_proj"},
      {"attn.c_proj", "self_attn.o_proj"}, {"mlp.c_fc", "mlp.fc1"},          {"mlp.c_proj", "mlp.fc2"}};
  Tensors tensors;
  WeightReader reader(*state);
  for (const auto& [name, tensor] : state->tensors) {
    const absl::StatusOr<at::Tensor> values = reader.Read(name, at::kFloat);
    ASSERT_TRUE(values.ok()) << values.status();
    std::string renamed =
        absl::StrReplaceAll(name, {{"transformer.wte.", "model.embed_tokens."}, {"transformer.h.", "model.layers."}});
    tensors[absl::StrReplaceAll(renamed, names)] = *values;
  }
  WriteWeights(tensors);
  std::ofstream(root_ / "config.json") << Json{{"model_type", "nanochat"},
                                               {"vocab_size", tensors.at("lm_head.weight").size(0)},
                                               {"hidden_size", info.width},
                                               {"intermediate_size", 4 * info.width},
                                               {"num_hidden_layers", info.layers},
                                               {"num_attention_heads", info.heads},
                                               {"num_key_value_heads", info.key_value_heads},
                                               {"max_position_embeddings", 512},
                                               {"rms_norm_eps", 1.1920928955078125e-07}};
  const auto converted = Load();
  ASSERT_TRUE(converted.ok()) << converted.status();
  const at::Tensor ids = at::arange(60, at::kLong).unsqueeze(0);
  ASSERT_EQ((*converted)->hook_points().size(), (*own)->hook_points().size());
  for (int i = 0; i < (*own)->hook_points().size(); ++i) {
    EXPECT_EQ((*converted)->hook_points()[i].name, (*own)->hook_points()[i].name);
    EXPECT_TRUE(at::equal(RunModel(**converted, ids, {i})[0], RunModel(**own, ids, {i})[0]))
        << (*own)->hook_points()[i].name;
  }
}

TEST_F(FamiliesConfigTest, WhatStandsBesideTheLanguageModelIsNeitherReadNorPartOfItsFingerprint) {
  const auto fingerprint = [&] {
    const auto model = Load();
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? (*model)->info().fingerprint : "";
  };
  Use("qwen3_5");
  const std::string whole = fingerprint();
  ChangeWeights([](Tensors& tensors) {
    for (auto it = tensors.begin(); it != tensors.end();) {
      const bool beside = it->first.rfind("model.visual.", 0) == 0 || it->first.rfind("mtp.", 0) == 0;
      it = beside ? tensors.erase(it) : std::next(it);
    }
  });
  EXPECT_EQ(fingerprint(), whole);
  ChangeWeights([](Tensors& tensors) { tensors.at("model.language_model.layers.0.linear_attn.dt_bias").add_(1); });
  EXPECT_NE(fingerprint(), whole);
}

// Experts of any family can be stored as one matrix each or as stacked matrices.
TEST_F(FamiliesConfigTest, ExpertsLoadFromEitherLayout) {
  Use("qwen3_moe");
  const at::Tensor apart = LastValue();
  ChangeWeights([](Tensors& tensors) {
    for (int i = 0; i < 3; ++i) {
      const std::string mlp = "model.layers." + std::to_string(i) + ".mlp.experts.";
      std::vector<at::Tensor> gate_up, down;
      for (int j = 0; j < 8; ++j) {
        const std::string one = mlp + std::to_string(j) + ".";
        gate_up.push_back(at::cat({tensors.at(one + "gate_proj.weight"), tensors.at(one + "up_proj.weight")}));
        down.push_back(tensors.at(one + "down_proj.weight"));
        for (const char* part : {"gate", "up", "down"}) tensors.erase(one + part + "_proj.weight");
      }
      tensors[mlp + "gate_up_proj"] = at::stack(gate_up);
      tensors[mlp + "down_proj"] = at::stack(down);
    }
  });
  EXPECT_LE((LastValue() - apart).norm().item<double>(), 1e-5 * apart.norm().item<double>());
}

// Returns the values of MXFP4 experts, (E, out, in).
at::Tensor FromMxfp4(const at::Tensor& blocks, const at::Tensor& scales) {
  at::Tensor values = at::empty({blocks.size(0), blocks.size(1), blocks.size(2) * kMxfp4Group}, at::kBFloat16);
  DecodeMxfp4(0, {blocks.data_ptr<uint8_t>(), blocks.nbytes()}, scales, values);
  return values;
}

TEST_F(FamiliesConfigTest, GptOssLoadsFromBfloat16AsFromMxfp4) {
  Use("gpt_oss");
  const at::Tensor quantized = LastValue();
  const int64_t bytes = Bytes();
  ChangeConfig([](Json& config) { config.erase("quantization_config"); });
  ChangeWeights([](Tensors& tensors) {
    for (int i = 0; i < 4; ++i) {
      for (const char* matrix : {"gate_up_proj", "down_proj"}) {
        const std::string name = "model.layers." + std::to_string(i) + ".mlp.experts." + matrix;
        tensors[name] = FromMxfp4(tensors.at(name + "_blocks"), tensors.at(name + "_scales")).transpose(1, 2);
        tensors.erase(name + "_blocks");
        tensors.erase(name + "_scales");
      }
    }
  });
  EXPECT_LE((LastValue() - quantized).norm().item<double>(), 1e-5 * quantized.norm().item<double>());
  EXPECT_EQ(Bytes(), bytes) << "of what is computed with, not of the file";
}

TEST_F(FamiliesConfigTest, OptWithNormsAfterTheSumsEndsItsBlocksWithOne) {
  Use("opt");
  ChangeConfig([](Json& config) { config["do_layer_norm_before"] = false; });
  ChangeWeights([](Tensors& tensors) {
    for (auto& [name, tensor] : tensors) tensor = tensor.to(at::kFloat);
    for (const char* part : {"weight", "bias"}) {
      tensors.erase(std::string("model.decoder.final_layer_norm.") + part);
      tensors.erase(std::string("decoder.final_layer_norm.") + part);
    }
  });
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->hook_points().Find("ln_final.hook_normalized"), -1);
  const auto value = [&](const std::string& name) {
    return RunModel(**model, at::arange(30, at::kLong).unsqueeze(0), {(*model)->hook_points().Find(name)})[0];
  };
  const at::Tensor sum = value("blocks.1.ln1.hook_out") + value("blocks.1.hook_mlp_out");
  const at::Tensor centred = sum - sum.mean(1, /*keepdim=*/true);
  const at::Tensor normalized = centred * (centred.square().mean(1, /*keepdim=*/true) + 1e-5).rsqrt();
  EXPECT_TRUE(at::allclose(value("blocks.1.ln2.hook_normalized"), normalized, 1e-4, 1e-5));
  EXPECT_TRUE(at::equal(value("blocks.1.hook_resid_post"), value("blocks.1.ln2.hook_out")));
  EXPECT_TRUE(at::equal(value("blocks.2.hook_resid_pre"), value("blocks.1.hook_resid_post")));
}

}  // namespace
}  // namespace hookline
