// Causal self-attention over sequences of equal (padded) length, and the rotation of its queries and keys.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "server/model/decoder_config.h"

namespace hookline {

// The rotations of a decoder, kept for as many positions as were ever needed. Not thread-safe.
class RotaryTables {
 public:
  RotaryTables(std::vector<RotaryConfig> configs, at::Device device, at::ScalarType dtype);

  // x (batch, positions, heads, head_width), rotated at each position by configuration `index`.
  at::Tensor Rotate(int index, const at::Tensor& x);

 private:
  struct Table {
    at::Tensor cos;  // (positions, 1, dims / 2)
    at::Tensor sin;
  };

  void Grow(int index, int64_t positions);

  const std::vector<RotaryConfig> configs_;
  const at::Device device_;
  const at::ScalarType dtype_;
  std::vector<Table> tables_;
};

// Which keys a block of queries may not see. Kept, because every layer and batch asks for the same ones. Not
// thread-safe.
class CausalMasks {
 public:
  explicit CausalMasks(at::Device device) : device_(device) {}

  // (queries, keys), true where key `j` is hidden from query `i`. Query 0 stands `ahead` positions after key 0; a query
  // sees itself and `reach` positions before it (negative: all).
  const at::Tensor& Hidden(int64_t queries, int64_t keys, int64_t ahead, int64_t reach);

 private:
  const at::Device device_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, at::Tensor> masks_;
  int64_t bytes_ = 0;
};

struct AttentionConfig {
  double scale = 1;     // on the scores
  double soft_cap = 0;  // scores become cap tanh(scores / cap); 0: no cap
  int64_t reach = -1;   // positions before its own that a query sees; negative: all
};

// softmax(scale q k^T, causal) v: q (batch, positions, heads, head_width), k and v with key_value_heads, of which query
// head a reads a / (heads / key_value_heads). Returns (batch, positions, heads * head_width). Padding on the right is
// never seen, since no query looks ahead.
at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionConfig& config,
                  CausalMasks& masks);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_H_
