// MXFP4, the 4-bit floating-point format of gpt-oss's experts (OCP Microscaling Formats, section 5.3 and 6.3).
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_

#include <ATen/ATen.h>

#include <cstdint>

#include "absl/types/span.h"

namespace hookline {

// Values that share a scale, and the bytes that hold them.
constexpr int64_t kMxfp4Group = 32;
constexpr int64_t kMxfp4GroupBytes = kMxfp4Group / 2;

// Decodes whole blocks of 16 bytes into their part of `values`, matrices (E, rows, 32 groups) of a floating type. The
// blocks begin at byte `begin` of all blocks (E, rows, groups, 16). `scales` (E, rows, groups), uint8, are the scales
// of all blocks. Byte i of a block holds values 2i (low half) and 2i + 1. Half a byte is sign * 8 + an index into 0,
// 0.5, 1, 1.5, 2, 3, 4, 6; the value is that number times 2^(scale - 127), or NaN if the scale is 255. `values` and
// `scales` are contiguous and on the host.
void DecodeMxfp4(int64_t begin, absl::Span<const uint8_t> blocks, const at::Tensor& scales, at::Tensor& values);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_MXFP4_H_
