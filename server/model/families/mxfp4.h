// MXFP4, the 4-bit floating-point format of gpt-oss's experts (OCP Microscaling Formats, section 5.3 and 6.3).
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_

#include <ATen/ATen.h>

#include <cstdint>

#include "server/model/load/state_dict.h"

namespace hookline {

// Values that share a scale, and the bytes that hold them.
constexpr int64_t kMxfp4Group = 32;
constexpr int64_t kMxfp4GroupBytes = kMxfp4Group / 2;

// The matrices (E, rows, 32 groups) of `dtype` that `blocks` (E, rows, groups, 16) and `scales` (E, rows, groups), both
// uint8, stand for: byte i of a block holds values 2i (low half) and 2i + 1, half a byte is sign * 8 + an index into 0,
// 0.5, 1, 1.5, 2, 3, 4, 6, and the value is that times 2^(scale - 127).
at::Tensor DequantizeMxfp4(const at::Tensor& blocks, const at::Tensor& scales, at::ScalarType dtype);

// The bytes by which `weights` grow when what is in this format gets values of `dtype`.
int64_t Mxfp4Growth(const StateDict& weights, at::ScalarType dtype);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_
