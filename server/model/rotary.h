// The rotations of a decoder's queries and keys (rotary_config.h has the formulas).
#ifndef HOOKLINE_SERVER_MODEL_ROTARY_H_
#define HOOKLINE_SERVER_MODEL_ROTARY_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/model/rotary_config.h"

namespace hookline {

// Tables of cos and sin, for at least as many positions as were ever needed. Not thread-safe.
class Rotary {
 public:
  // Tables grow by powers of two up to `most_positions`, so that few passes wait for the upload of a table.
  Rotary(std::vector<RotaryConfig> configs, int64_t most_positions, at::Device device, at::ScalarType dtype);

  // Begins a pass over sequences of `lengths` tokens, padded to `positions`; if `lengths` is empty, all have
  // `positions`. A sequence's own length chooses longrope's factors, so that its rows do not depend on the rest
  // of the batch.
  void Begin(int64_t positions, absl::Span<const int64_t> lengths);

  // Returns x (batch, positions, heads, width of at least `dims`), rotated at each position by configuration `index`;
  // values from `dims` on do not change.
  at::Tensor Rotate(int index, const at::Tensor& x) const;

 private:
  struct Table {
    // In a pass of long and short sequences, both tensors have a leading axis (batch).
    at::Tensor cos;  // (positions, 1, dims): each value twice, at both members of its pair
    at::Tensor sin;  // (positions, 1, dims / 2)
  };
  struct Rotation {
    RotaryConfig config;
    Table table;       // for every position so far; for longrope with the short factors
    Table long_table;  // longrope only, with the long factors
    Table pass;        // the tables of the current pass
  };

  Table Make(const RotaryConfig& config, const std::vector<double>& divisors, int64_t positions) const;
  Table Mixed(const Rotation& rotation, int64_t positions, absl::Span<const int64_t> lengths) const;

  const int64_t most_positions_;
  const at::Device device_;
  const at::ScalarType dtype_;
  std::vector<Rotation> rotations_;
  // Tables that were too short. A device can still be reading them, and the first ones belong to the stream that loaded
  // the model. Together they take less memory than the tables that replaced them.
  std::vector<Table> outgrown_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ROTARY_H_
