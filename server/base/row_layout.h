// The layout of one row of a hook point in memory, on the wire and on disk.
#ifndef HOOKLINE_SERVER_BASE_ROW_LAYOUT_H_
#define HOOKLINE_SERVER_BASE_ROW_LAYOUT_H_

#include <cstdint>

#include "server/base/dtype.h"

namespace hookline {

// A row has up to three parts, little-endian and without padding between them or after them:
//
//   scale    one float32, for dtypes with a scale: an entry is scale x its number
//   indices  top_k uint32, if top_k is not 0: which entries of the row are there, the largest magnitude first
//   numbers  top_k (if it is 0: width) numbers of the dtype
//
// All rows of a hook point have the same number of bytes.
struct RowLayout {
  Dtype dtype = Dtype::kFloat32;
  int64_t width = 0;
  int64_t top_k = 0;  // 0: every entry is there

  constexpr int64_t numbers() const { return top_k > 0 ? top_k : width; }
  constexpr int64_t scale_bytes() const { return HasRowScale(dtype) ? 4 : 0; }
  constexpr int64_t numbers_offset() const { return scale_bytes() + 4 * top_k; }
  constexpr int64_t bytes() const { return numbers_offset() + numbers() * DtypeBytes(dtype); }
  // Returns whether the row is its `width` values and nothing else.
  constexpr bool is_plain() const { return numbers_offset() == 0; }
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_ROW_LAYOUT_H_
