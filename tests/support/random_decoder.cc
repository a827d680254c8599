#include "tests/support/random_decoder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/model/decoder.h"

namespace hookline {
namespace {

// Draws the weights on the CPU, so that every device gets the same numbers.
class Weights {
 public:
  Weights(uint64_t seed, const at::Device& device, at::ScalarType dtype)
      : generator_(at::detail::createCPUGenerator(seed)), device_(device), dtype_(dtype) {}

  at::Tensor Normal(at::IntArrayRef sizes, double mean, double deviation) {
    return at::empty(sizes, at::kFloat).normal_(mean, deviation, generator_).to(device_, dtype_);
  }

  // Makes the weight as (out, in), as most checkpoints store it. The deviation keeps the size of rows.
  LinearWeights Linear(int64_t in, int64_t out) {
    return {Normal({out, in}, 0, 1 / std::sqrt(static_cast<double>(in))).t(), Normal({out}, 0, 0.02)};
  }

  NormWeights Norm(int64_t width) { return {Normal({width}, 1, 0.1), Normal({width}, 0, 0.1)}; }

 private:
  at::Generator generator_;
  const at::Device device_;
  const at::ScalarType dtype_;
};

}  // namespace

RandomDecoderOptions Gpt2SizedDecoder() {
  RandomDecoderOptions options;
  options.name = "random-12x768";
  options.layers = 12;
  options.width = 768;
  options.heads = 12;
  options.vocabulary_size = 1024;
  return options;
}

std::unique_ptr<Model> RandomDecoder(const RandomDecoderOptions& options) {
  const int64_t d = options.width;
  const at::ScalarType dtype = options.dtype == Dtype::kFloat32    ? at::kFloat
                               : options.dtype == Dtype::kBFloat16 ? at::kBFloat16
                                                                   : at::kHalf;
  DecoderConfig config;
  config.width = d;
  SoftmaxAttentionConfig attention;
  attention.heads = attention.key_value_heads = options.heads;
  attention.head_width = d / options.heads;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_width));
  const DenseConfig mlp{4 * d, Activation::kGeluTanh, /*gated=*/false};
  config.vocabulary_size = options.vocabulary_size;
  config.context_length = options.context_length;
  config.position_embedding = true;
  config.ln1 = config.ln2 = config.ln_final = {NormConfig::Kind::kLayer, 1e-5, /*weighted=*/true};
  config.layers.assign(static_cast<size_t>(options.layers), LayerConfig{attention, mlp});

  Weights random(options.seed, at::Device(options.device), dtype);
  DecoderWeights weights;
  weights.token_embedding = random.Normal({options.vocabulary_size, d}, 0, 1);
  weights.position_embedding = random.Normal({options.context_length, d}, 0, 0.1);
  for (int i = 0; i < options.layers; ++i) {
    LayerWeights block;
    block.ln1 = random.Norm(d);
    SoftmaxAttentionWeights of_attention;
    of_attention.query = random.Linear(d, d);
    of_attention.key = random.Linear(d, d);
    of_attention.value = random.Linear(d, d);
    of_attention.out = random.Linear(d, d);
    block.attention = std::move(of_attention);
    block.ln2 = random.Norm(d);
    DenseWeights of_mlp;
    of_mlp.up = random.Linear(d, mlp.width);
    of_mlp.down = random.Linear(mlp.width, d);
    block.feed_forward = std::move(of_mlp);
    weights.layers.push_back(std::move(block));
  }
  weights.ln_final = random.Norm(d);
  weights.unembedding.weight = random.Normal({d, options.vocabulary_size}, 0, 1 / std::sqrt(static_cast<double>(d)));

  ModelInfo info;
  info.name = options.name;
  info.architecture = "gpt2";
  info.variant = "random";
  info.details = absl::StrFormat("random weights, seed %d", options.seed);
  info.dtype = options.dtype;
  info.device = options.device;
  std::vector<Stage> stages;
  const int blocks = options.layers / options.stages;
  for (int i = 0; i < options.stages && options.stages > 1; ++i) {
    stages.push_back({options.device, i * blocks, blocks, 0});
  }
  // Distinguishes these weights from others without a hash of them.
  info.fingerprint = absl::StrFormat("%016x%04x%04x%08x", options.seed, options.layers, d, options.vocabulary_size);
  info.parameters =
      options.vocabulary_size * d + options.context_length * d + options.layers * (12 * d * d + 13 * d) + 2 * d;
  return std::make_unique<Decoder>(std::move(info), std::move(config), std::move(weights), dtype, std::move(stages));
}

ServedModel SharedRandomDecoder(const RandomDecoderOptions& options, int replicas) {
  std::vector<Stage> stages;
  const int blocks = options.layers / options.stages;
  for (int i = 0; i < options.stages; ++i) stages.push_back({options.device, i * blocks, blocks, 0});
  ServedModel served;
  for (int replica = 0; replica < replicas; ++replica) {
    const auto share = [&served](Decoder::Sharing sharing, size_t of) {
      return static_cast<const Decoder&>(*served.executors[of].model).Share(sharing);
    };
    std::unique_ptr<Model> own =
        replica == 0 ? RandomDecoder(options) : std::unique_ptr<Model>(share(Decoder::Sharing::kReplica, 0));
    const size_t first = served.executors.size();
    served.executors.push_back({std::move(own), replica, stages});
    for (int stage = 1; stage < options.stages; ++stage) {
      served.executors.push_back({share(Decoder::Sharing::kPipeline, first), replica, stages});
    }
  }
  return served;
}

}  // namespace hookline
