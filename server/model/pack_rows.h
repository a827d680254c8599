// Packs rows of a tensor into the bytes that are sent, on the tensor's device.
#ifndef HOOKLINE_SERVER_MODEL_PACK_ROWS_H_
#define HOOKLINE_SERVER_MODEL_PACK_ROWS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "server/base/row_layout.h"
#include "server/model/conversion_loss.h"

namespace hookline {

// The number of members of ConversionLoss.
inline constexpr int64_t kLosses = 4;

struct PackedRows {
  at::Tensor bytes;  // uint8, (rows, layout.bytes()), contiguous
  // float64, (kLosses): the members of ConversionLoss in their order. Undefined if nothing can be lost.
  at::Tensor loss;
};

// Packs `rows` (rows, layout.width), of any floating type, as `layout` says.
//
// top_k keeps the entries with the largest magnitude, in descending order; NaN counts as larger than any number.
// LibTorch chooses among equal magnitudes.
//
// Dtypes with a scale: scale = max |entry| / M with M = 127 (int8) or 448 (E4M3), in binary32; each number is entry /
// scale, rounded to the nearest, ties to even. A row of zeros has scale 0. Neither type can hold all non-finite values,
// so a row with one has scale NaN and numbers 0, and reads as NaN.
PackedRows PackRows(const at::Tensor& rows, const RowLayout& layout);

// Returns a `loss` (above) whose third entry is the number of finite values of `from` that are infinite in `to`.
at::Tensor OverflowLoss(const at::Tensor& from, const at::Tensor& to);

// Reads a `loss` in host memory.
ConversionLoss ReadLoss(const double* loss);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_PACK_ROWS_H_
