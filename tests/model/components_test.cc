// Tests the parts of a decoder against slow and obvious references.
#include <ATen/ATen.h>

#include <cmath>
#include <string>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "server/model/attention/gated_delta.h"
#include "server/model/families/mxfp4.h"
#include "server/model/layers.h"
#include "server/model/rotary.h"

namespace hookline {
namespace {

// Computes the recurrence token by token, in float64.
at::Tensor SlowGatedDelta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                          const at::Tensor& beta) {
  at::Tensor out = at::empty(v.sizes(), at::kDouble);
  for (int64_t s = 0; s < q.size(0); ++s) {
    at::Tensor state = at::zeros({k.size(2), v.size(2)}, at::kDouble);
    for (int64_t t = 0; t < q.size(1); ++t) {
      state = state * log_decay[s][t].to(at::kDouble).exp();
      const at::Tensor key = k[s][t].to(at::kDouble);
      const at::Tensor error = (v[s][t].to(at::kDouble) - at::mv(state.t(), key)) * beta[s][t].to(at::kDouble);
      state = state + at::outer(key, error);
      out[s][t].copy_(at::mv(state.t(), q[s][t].to(at::kDouble)));
    }
  }
  return out;
}

TEST(GatedDeltaRuleTest, EveryChunkSizeGivesTheRecurrence) {
  at::manual_seed(1);
  const int64_t sequences = 3, positions = 70, key_width = 8, value_width = 5;
  at::Tensor k = at::randn({sequences, positions, key_width});
  k = k / k.norm(2, {-1}, /*keepdim=*/true);
  const at::Tensor q = at::randn({sequences, positions, key_width}) / 3,
                   v = at::randn({sequences, positions, value_width});
  const at::Tensor log_decay = -at::rand({sequences, positions}), beta = at::rand({sequences, positions});
  const at::Tensor expected = SlowGatedDelta(q, k, v, log_decay, beta);
  for (const int64_t chunk : {1, 7, 64, 70, 1000}) {
    const at::Tensor got = GatedDeltaRule(q, k, v, log_decay, beta, chunk);
    EXPECT_LE((got - expected).norm().item<double>(), 2e-6 * expected.norm().item<double>()) << "chunk " << chunk;
  }
}

// For a head that forgets at once, an implementation that divides decays would overflow.
TEST(GatedDeltaRuleTest, StrongDecayStaysFinite) {
  const at::Tensor q = at::ones({1, 64, 4}), v = at::ones({1, 64, 4}), beta = at::ones({1, 64});
  const at::Tensor got = GatedDeltaRule(q, q / 2, v, at::full({1, 64}, -1e4), beta, 64);
  EXPECT_TRUE(at::isfinite(got).all().item<bool>());
}

TEST(NormTest, WithItsOwnScaleGivenIsTheSameAndWithTwiceItHalf) {
  at::manual_seed(2);
  for (const NormConfig::Kind kind : {NormConfig::Kind::kRms, NormConfig::Kind::kLayer}) {
    const NormConfig config{kind, 1e-3, /*weighted=*/true};
    const NormWeights weights{at::randn({6}), kind == NormConfig::Kind::kLayer ? at::randn({6}) : at::Tensor()};
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor x = (at::randn({5, 6}) + 1).to(dtype), before = x.clone();
      const Normed own = Norm(x, config, weights);
      const at::Tensor scale = NormScale(x, config);
      EXPECT_EQ(scale.scalar_type(), at::kFloat);
      EXPECT_EQ(scale.sizes(), at::IntArrayRef({5, 1}));
      EXPECT_TRUE(at::equal(x, before));
      const Normed same = NormBy(scale, x, config, weights), half = NormBy(scale * 2, x, config, weights);
      const double tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
      EXPECT_TRUE(at::allclose(same.normalized, own.normalized, tolerance, tolerance));
      EXPECT_TRUE(at::allclose(same.out, own.out, tolerance, tolerance));
      EXPECT_TRUE(at::allclose(half.normalized * 2, own.normalized, tolerance, tolerance));
    }
  }
}

TEST(RotaryTest, LongRopeGoesByEachSequencesOwnLength) {
  RotaryConfig config;
  config.dims = 4;
  config.scaling = RotaryConfig::Scaling::kLongRope;
  config.original_context = 4;
  config.short_factor = {1, 1};
  config.long_factor = {2, 8};
  Rotary rotary({config}, 1024, at::kCPU, at::kFloat);
  const at::Tensor x = at::ones({2, 6, 1, 4});
  rotary.Begin(6, {3, 6});
  const at::Tensor mixed = rotary.Rotate(0, x);
  rotary.Begin(3, {});
  EXPECT_TRUE(at::equal(mixed[0].narrow(0, 0, 3), rotary.Rotate(0, x.narrow(1, 0, 3))[0]));
  rotary.Begin(6, {});
  EXPECT_TRUE(at::equal(mixed[1], rotary.Rotate(0, x)[1]));
  EXPECT_FALSE(at::equal(mixed[0], mixed[1]));
}

TEST(RotaryTest, AdjacentPairsStayWhereTheyAreAndInterleavedOnesAreSorted) {
  RotaryConfig config;
  config.dims = 4;
  config.pairs = RotaryConfig::Pairs::kAdjacent;
  RotaryConfig sorted = config;
  sorted.pairs = RotaryConfig::Pairs::kInterleaved;
  Rotary rotary({config, sorted}, 1024, at::kCPU, at::kFloat);
  rotary.Begin(5, {});
  const at::Tensor x = at::arange(30, at::kFloat).view({1, 5, 1, 6});
  const at::Tensor adjacent = rotary.Rotate(0, x), interleaved = rotary.Rotate(1, x);
  EXPECT_TRUE(at::equal(adjacent.slice(3, 0, 4, 2), interleaved.slice(3, 0, 2)));
  EXPECT_TRUE(at::equal(adjacent.slice(3, 1, 4, 2), interleaved.slice(3, 2, 4)));
  EXPECT_TRUE(at::equal(adjacent.slice(3, 4), x.slice(3, 4)));
}

// Tests each value against the definition of the format.
TEST(Mxfp4Test, EachValueIsItsHalfByteTimesThePowerOfItsScale) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  at::manual_seed(3);
  const at::Tensor blocks = at::randint(0, 256, {2, 3, 5, kMxfp4GroupBytes}, at::kByte);
  at::Tensor scales = at::randint(100, 150, {2, 3, 5}, at::kByte);
  scales.view(-1)[7] = 255;
  at::Tensor values = at::empty({2, 3, 5 * kMxfp4Group}, at::kFloat);
  // The blocks come in two pieces, as in the reading of a file.
  const absl::Span<const uint8_t> bytes(blocks.data_ptr<uint8_t>(), blocks.nbytes());
  constexpr int64_t kFirst = 11 * kMxfp4GroupBytes;
  DecodeMxfp4(kFirst, bytes.subspan(kFirst), scales, values);
  DecodeMxfp4(0, bytes.first(kFirst), scales, values);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const int half = i % 2 == 0 ? bytes[static_cast<size_t>(i / 2)] & 15 : bytes[static_cast<size_t>(i / 2)] >> 4;
    const int scale = scales.data_ptr<uint8_t>()[i / kMxfp4Group];
    const double expected = (half < 8 ? 1 : -1) * kMagnitudes[half % 8] * std::pow(2.0, scale - 127);
    const float value = values.data_ptr<float>()[i];
    if (scale == 255) {
      EXPECT_TRUE(std::isnan(value)) << i;
    } else {
      EXPECT_EQ(value, expected) << i;
    }
  }
}

}  // namespace
}  // namespace hookline
