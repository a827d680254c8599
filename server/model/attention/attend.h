// Causal softmax attention over sequences of equal (padded) length.
#ifndef HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_
#define HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <tuple>

namespace hookline {

// Hides keys from a block of queries. Masks are kept, because every layer and batch asks for the same ones. Not
// thread-safe.
class CausalMasks {
 public:
  explicit CausalMasks(at::Device device) : device_(device) {}

  // (queries, keys), true where key `j` is hidden from query `i`. Query 0 stands `ahead` positions after key 0; a query
  // sees itself and `reach` positions before it (negative: all).
  const at::Tensor& Hidden(int64_t queries, int64_t keys, int64_t ahead, int64_t reach);

  // (positions, positions) of `dtype`, -infinity where a key is hidden from a query that sees `reach` positions before
  // it, else 0: what a fused kernel adds to its scores. A view of rows that begin at multiples of 8 values.
  at::Tensor Additive(int64_t positions, int64_t reach, at::ScalarType dtype);

 private:
  at::Tensor Make(int64_t queries, int64_t keys, int64_t ahead, int64_t reach) const;

  const at::Device device_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, at::Tensor> masks_;
  int64_t bytes_ = 0;
  // The largest so far, of which shorter ones are the beginning.
  std::map<std::tuple<int64_t, at::ScalarType>, at::Tensor> additive_;
};

struct AttendOptions {
  double scale = 1;     // on the scores
  double soft_cap = 0;  // scores become cap tanh(scores / cap); 0: no cap
  int64_t reach = -1;   // positions before its own that a query sees; negative: all
  // (heads), float32, or undefined: a logit t per head beside the scores s, which has no value. A key's weight is
  // exp(s_j) / (exp(t) + sum over i of exp(s_i)).
  at::Tensor sinks;
};

// softmax(scale q k^T, causal) v: q (batch, positions, heads, head_width), k and v with key_value_heads, of which query
// head a reads a / (heads / key_value_heads); v's heads may have another width. Returns (batch, positions, heads *
// v's width). Padding on the right is never seen, since no query looks ahead.
at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttendOptions& options,
                  CausalMasks& masks);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ATTENTION_ATTEND_H_
