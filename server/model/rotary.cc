#include "server/model/rotary.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace hookline {
namespace {

// base^(2j / dims), computed in float32 and in this order, like the models' own code: the last bit matters
// at high positions.
at::Tensor Periods(const RotaryConfig& config) {
  const at::Tensor exponents = at::arange(0, config.dims, 2, at::kFloat) / static_cast<double>(config.dims);
  return at::pow(at::Scalar(config.base), exponents);
}

// Scales by wavelength L and original_context: short wavelengths stay, long ones are stretched, those
// between are blended.
at::Tensor Llama3Frequencies(const RotaryConfig& config) {
  const at::Tensor frequencies = Periods(config).reciprocal();
  const at::Tensor wavelengths = 2 * M_PI / frequencies;
  const at::Tensor stretched = frequencies / config.factor;
  const at::Tensor share = (config.original_context / wavelengths - config.low_frequency_factor) /
                           (config.high_frequency_factor - config.low_frequency_factor);
  const at::Tensor between = (1 - share) * stretched + share * frequencies;
  const at::Tensor scaled =
      at::where(wavelengths > config.original_context / config.low_frequency_factor, stretched, between);
  return at::where(wavelengths < config.original_context / config.high_frequency_factor, frequencies, scaled);
}

// Blends 1 / period and 1 / (factor period) by the number of turns of a pair within original_context.
at::Tensor YarnFrequencies(const RotaryConfig& config) {
  const double dims = static_cast<double>(config.dims);
  const auto pair_that_turns = [&](double times) {
    return dims * std::log(config.original_context / (times * 2 * M_PI)) / (2 * std::log(config.base));
  };
  double low = pair_that_turns(config.beta_fast), high = pair_that_turns(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1);
  if (low == high) high += 0.001;
  const at::Tensor ramp = ((at::arange(0, config.dims / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const at::Tensor kept = 1 - ramp;
  const at::Tensor periods = Periods(config);
  return (periods * config.factor).reciprocal() * (1 - kept) + periods.reciprocal() * kept;
}

// Returns (dims / 2), float32. `divisors` are those of longrope.
at::Tensor Frequencies(const RotaryConfig& config, const std::vector<double>& divisors) {
  switch (config.scaling) {
    case RotaryConfig::Scaling::kNone:
      break;
    case RotaryConfig::Scaling::kLinear:
      return Periods(config).reciprocal() / config.factor;
    case RotaryConfig::Scaling::kLlama3:
      return Llama3Frequencies(config);
    case RotaryConfig::Scaling::kYarn:
      return YarnFrequencies(config);
    case RotaryConfig::Scaling::kLongRope:
      return (at::tensor(divisors, at::kFloat) * Periods(config)).reciprocal();
    case RotaryConfig::Scaling::kProportional: {
      at::Tensor frequencies = Periods(config).reciprocal() / config.factor;
      frequencies.narrow(0, config.turning, frequencies.size(0) - config.turning).zero_();
      return frequencies;
    }
  }
  return Periods(config).reciprocal();
}

}  // namespace

Rotary::Rotary(std::vector<RotaryConfig> configs, int64_t most_positions, at::Device device, at::ScalarType dtype)
    : most_positions_(most_positions), device_(device), dtype_(dtype) {
  for (RotaryConfig& config : configs) rotations_.push_back({std::move(config), {}, {}, {}});
}

Rotary::Table Rotary::Make(const RotaryConfig& config, const std::vector<double>& divisors, int64_t positions) const {
  // Computed on the CPU for every device, since another library's sine differs in the last bit.
  const at::Tensor angles = at::outer(at::arange(0, positions, at::kFloat), Frequencies(config, divisors)).unsqueeze(1);
  const auto scaled = [&](const at::Tensor& values) {
    return (config.attention_factor == 1 ? values : values * config.attention_factor).to(device_, dtype_);
  };
  const at::Tensor cos = angles.cos();
  const bool halves = config.pairs == RotaryConfig::Pairs::kHalves;
  return {scaled(halves ? at::cat({cos, cos}, -1) : cos.repeat_interleave(2, -1)), scaled(angles.sin())};
}

// Stacks each sequence's own table on the device, so that nothing is copied from the host within a pass.
Rotary::Table Rotary::Mixed(const Rotation& rotation, int64_t positions, absl::Span<const int64_t> lengths) const {
  std::vector<at::Tensor> cos, sin;
  for (const int64_t length : lengths) {
    const bool is_long = static_cast<double>(length) > rotation.config.original_context;
    const Table& table = is_long ? rotation.long_table : rotation.table;
    cos.push_back(table.cos.narrow(0, 0, positions));
    sin.push_back(table.sin.narrow(0, 0, positions));
  }
  return {at::stack(cos), at::stack(sin)};
}

void Rotary::Begin(int64_t positions, absl::Span<const int64_t> lengths) {
  for (Rotation& rotation : rotations_) {
    const RotaryConfig& config = rotation.config;
    const bool by_length = config.scaling == RotaryConfig::Scaling::kLongRope;
    if (!rotation.table.cos.defined() || rotation.table.cos.size(0) < positions) {
      int64_t rounded = 1;
      while (rounded < positions) rounded *= 2;
      rounded = std::max(positions, std::min(rounded, most_positions_));
      if (!device_.is_cpu() && rotation.table.cos.defined()) {
        outgrown_.push_back(std::move(rotation.table));
        if (by_length) outgrown_.push_back(std::move(rotation.long_table));
      }
      rotation.table = Make(config, config.short_factor, rounded);
      if (by_length) rotation.long_table = Make(config, config.long_factor, rounded);
    }
    const auto is_long = [&](int64_t length) { return static_cast<double>(length) > config.original_context; };
    const int64_t longs = lengths.empty() ? is_long(positions) : std::count_if(lengths.begin(), lengths.end(), is_long);
    if (by_length && longs > 0 && longs < static_cast<int64_t>(lengths.size())) {
      rotation.pass = Mixed(rotation, positions, lengths);
      continue;
    }
    const Table& table = by_length && longs > 0 ? rotation.long_table : rotation.table;
    rotation.pass = {table.cos.narrow(0, 0, positions), table.sin.narrow(0, 0, positions)};
  }
}

at::Tensor Rotary::Rotate(int index, const at::Tensor& x) const {
  const RotaryConfig& config = rotations_[index].config;
  const at::Tensor& cos = rotations_[index].pass.cos;
  const at::Tensor& sin = rotations_[index].pass.sin;
  const int64_t half = config.dims / 2;
  const bool halves = config.pairs == RotaryConfig::Pairs::kHalves;
  const auto first = [&](const at::Tensor& t) {
    return halves ? t.narrow(-1, 0, half) : t.slice(-1, 0, config.dims, 2);
  };
  const auto second = [&](const at::Tensor& t) {
    return halves ? t.narrow(-1, half, half) : t.slice(-1, 1, config.dims, 2);
  };
  const double sign = config.clockwise ? -1 : 1;
  // Rotates both halves at once, in place.
  const at::Tensor turned = at::mul(x.narrow(-1, 0, config.dims), cos);
  first(turned).addcmul_(second(x), sin, -sign);
  second(turned).addcmul_(first(x), sin, sign);
  std::vector<at::Tensor> parts = {turned};
  if (config.pairs == RotaryConfig::Pairs::kInterleaved) parts = {first(turned), second(turned)};
  if (config.dims < x.size(-1)) parts.push_back(x.narrow(-1, config.dims, x.size(-1) - config.dims));
  return parts.size() == 1 ? turned : at::cat(parts, -1);
}

}  // namespace hookline
