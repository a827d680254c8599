// Causal softmax attention over sequences of equal (padded) length.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <tuple>

namespace hookline {

// Masks that hide keys from a block of queries. They are kept, because all layers and most batches use the same ones.
// Not thread-safe.
class CausalMasks {
 public:
  explicit CausalMasks(at::Device device) : device_(device) {}

  // Returns (queries, keys), true where key `j` is hidden from query `i`. Query 0 is `ahead` positions after key 0. A
  // query sees itself and the `reach` positions before it (negative: all).
  const at::Tensor& Hidden(int64_t queries, int64_t keys, int64_t ahead, int64_t reach);

  // Returns (positions, positions) of `dtype`, which a fused kernel adds to its scores: -infinity where a key is hidden
  // from a query that sees the `reach` positions before it, else 0. The result is a view of rows that begin at
  // multiples of 8 values.
  at::Tensor Additive(int64_t positions, int64_t reach, at::ScalarType dtype);

 private:
  at::Tensor Make(int64_t queries, int64_t keys, int64_t ahead, int64_t reach) const;

  const at::Device device_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, at::Tensor> masks_;
  int64_t bytes_ = 0;
  // The largest mask so far; smaller ones are its top left corner.
  std::map<std::tuple<int64_t, at::ScalarType>, at::Tensor> additive_;
};

struct AttendOptions {
  double scale = 1;     // on the scores
  double soft_cap = 0;  // scores become cap tanh(scores / cap); 0: no cap
  int64_t reach = -1;   // positions before its own that a query sees; negative: all
  // (heads), float32, or undefined: a logit t per head that takes part in the softmax of the scores s but has no value.
  // The weight of key j is exp(s_j) / (exp(t) + sum over i of exp(s_i)).
  at::Tensor sinks;
};

// Returns softmax(scale q k^T, causal) v, (batch, positions, heads * v's width). q is (batch, positions, heads,
// head_width); k and v have key_value_heads, and query head a reads their head a / (heads / key_value_heads). The heads
// of v can have another width. Padding on the right is never seen, since no query looks ahead.
at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttendOptions& options,
                  CausalMasks& masks);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_
