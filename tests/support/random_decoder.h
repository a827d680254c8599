// Makes decoders with random weights without files, for benchmarks and for tests that need a real model.
//
//   std::unique_ptr<Model> model = RandomDecoder({});                    // two blocks of 32: milliseconds
//   std::unique_ptr<Model> model = RandomDecoder(Gpt2SizedDecoder());    // 12 blocks of 768
#ifndef HOOKLINE_TESTS_SUPPORT_RANDOM_DECODER_H_
#define HOOKLINE_TESTS_SUPPORT_RANDOM_DECODER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "server/model/model.h"
#include "server/model/served_model.h"

namespace hookline {

struct RandomDecoderOptions {
  std::string name = "random";
  int layers = 2;
  int stages = 1;  // with equally many blocks, all on `device`; divides `layers`
  int64_t width = 32;
  int64_t heads = 4;  // divides `width`
  int64_t vocabulary_size = 257;
  int64_t context_length = 1024;
  Dtype dtype = Dtype::kFloat32;
  std::string device = "cpu";
  uint64_t seed = 1;  // the same seed gives the same weights, and the same fingerprint
};

// Returns GPT-2's sizes, but a small vocabulary, since no hook point's cost depends on its size.
RandomDecoderOptions Gpt2SizedDecoder();

// Returns a decoder with GPT-2's architecture: LayerNorm with weights and biases, learned positions, an MLP four times
// as wide, with GELU.
std::unique_ptr<Model> RandomDecoder(const RandomDecoderOptions& options);

// Returns replicas of such a decoder that share the weights, each with an executor for each stage.
ServedModel SharedRandomDecoder(const RandomDecoderOptions& options, int replicas);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_RANDOM_DECODER_H_
