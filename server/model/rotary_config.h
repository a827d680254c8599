// The rotation of queries and keys. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_ROTARY_CONFIG_H_
#define HOOKLINE_SERVER_MODEL_ROTARY_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hookline {

// Rotary position embedding of the first `dims` values of each head: pair j turns by the angle position x frequency_j.
// Unless it is scaled, frequency_j = base^(-2j / dims). Everything is float32. The README.md of the families' fixtures
// has the formulas of every scaling.
struct RotaryConfig {
  // The values that make pair j.
  enum class Pairs {
    kHalves,       // j and j + dims / 2
    kAdjacent,     // 2j and 2j + 1
    kInterleaved,  // 2j and 2j + 1, but the results are laid out as all first members, then all second ones
  };
  enum class Scaling {
    kNone,
    kLinear,        // frequency / factor
    kLlama3,        // by wavelength, see below
    kYarn,          // a blend of frequency and frequency / factor, by the number of turns within original_context
    kLongRope,      // frequency / short_factor or long_factor, by the sequence's own length
    kProportional,  // only the first `turning` pairs turn
  };

  int64_t dims = 0;
  double base = 10000;
  bool clockwise = false;  // turns by minus the angle
  Pairs pairs = Pairs::kHalves;
  Scaling scaling = Scaling::kNone;
  double factor = 1;            // kLinear, kLlama3, kYarn
  double attention_factor = 1;  // multiplies cos and sin: kYarn, kLongRope
  double original_context = 0;  // kLlama3, kYarn, kLongRope: positions that the unscaled rotation was trained on

  // kLlama3: wavelengths up to original_context / high_frequency_factor stay, those from original_context /
  // low_frequency_factor are stretched by `factor`, and those between are blended.
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;

  // kYarn: pairs that turn at least beta_fast times stay, those that turn at most beta_slow times are stretched.
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;  // rounds the bounds to whole pairs

  // kLongRope: dims / 2 divisors each, for sequences of up to original_context tokens and for longer ones.
  std::vector<double> short_factor;
  std::vector<double> long_factor;

  int64_t turning = 0;  // kProportional

  // All fields, in a fixed order. It is part of the model's fingerprint.
  std::string ToString() const;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ROTARY_CONFIG_H_
