// The rotations of a decoder's queries and keys (rotary_config.h has the formulas).
#ifndef HOOKLINE_SERVER_MODEL_ROTARY_H_
#define HOOKLINE_SERVER_MODEL_ROTARY_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/model/rotary_config.h"

namespace hookline {

// Tables of cos and sin, kept for as many positions as were ever needed. Not thread-safe.
class Rotary {
 public:
  Rotary(std::vector<RotaryConfig> configs, at::Device device, at::ScalarType dtype);

  // Begins a pass over sequences of `lengths` tokens, padded to `positions`; empty: all have `positions`. A sequence's
  // own length chooses longrope's factors, so that its rows do not depend on what shares its batch.
  void Begin(int64_t positions, absl::Span<const int64_t> lengths);

  // x (batch, positions, heads, width of at least `dims`), rotated at each position by configuration `index`; values
  // from `dims` on stay.
  at::Tensor Rotate(int index, const at::Tensor& x) const;

 private:
  struct Table {
    at::Tensor cos;  // (positions, 1, dims / 2); in a pass of long and short sequences (batch, positions, 1, dims / 2)
    at::Tensor sin;
  };
  struct Rotation {
    RotaryConfig config;
    Table table;       // of every position so far; for longrope with the short factors
    Table long_table;  // longrope only, with the long factors
    Table pass;        // what the pass that began last uses
  };

  Table Make(const RotaryConfig& config, const std::vector<double>& divisors, int64_t positions) const;
  Table Mixed(const Rotation& rotation, int64_t positions, absl::Span<const int64_t> lengths) const;

  const at::Device device_;
  const at::ScalarType dtype_;
  std::vector<Rotation> rotations_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ROTARY_H_
