// Packs rows into slabs: hook point after hook point, row after row. A row never crosses the border of a slab.
//
//   RowPacking packing(slab_bytes);
//   packing.Add(rows, row_bytes, [&](const RowPacking::Piece& piece) { ... });
#ifndef HOOKLINE_SERVER_CAPTURE_ROW_PACKING_H_
#define HOOKLINE_SERVER_CAPTURE_ROW_PACKING_H_

#include <algorithm>
#include <cstdint>

#include "absl/functional/function_ref.h"

namespace hookline {

// Begins without an open slab. It is a value, so that a copy can try what would fit.
class RowPacking {
 public:
  explicit RowPacking(int64_t slab_bytes) : slab_bytes_(slab_bytes) {}

  // Rows that lie next to each other in one slab.
  struct Piece {
    bool opens_slab = false;  // begins a new slab, which is the open one from here on
    int64_t offset = 0;       // in that slab, in bytes
    int64_t rows = 0;
  };

  // Packs `rows` rows of `row_bytes` (at most slab_bytes) each, and calls `place` with each piece.
  void Add(int64_t rows, int64_t row_bytes, absl::FunctionRef<void(const Piece&)> place) {
    while (rows > 0) {
      Piece piece;
      piece.opens_slab = RowsThatFit(row_bytes) == 0;
      if (piece.opens_slab) OpenSlab();
      piece.offset = used_;
      piece.rows = std::min(rows, RowsThatFit(row_bytes));
      used_ += piece.rows * row_bytes;
      rows -= piece.rows;
      place(piece);
    }
  }

  // Packs the rows without calling anything, in constant time.
  void Skip(int64_t rows, int64_t row_bytes) {
    const int64_t in_open_slab = std::min(rows, RowsThatFit(row_bytes));
    used_ += in_open_slab * row_bytes;
    rows -= in_open_slab;
    if (rows == 0) return;
    const int64_t per_slab = slab_bytes_ / row_bytes;
    const int64_t full_slabs = (rows - 1) / per_slab;
    slabs_ += full_slabs;
    OpenSlab();
    used_ = (rows - full_slabs * per_slab) * row_bytes;
  }

  // Slabs opened so far.
  int64_t slabs() const { return slabs_; }

 private:
  int64_t RowsThatFit(int64_t row_bytes) const { return (slab_bytes_ - used_) / row_bytes; }
  void OpenSlab() {
    ++slabs_;
    used_ = 0;
  }

  int64_t slab_bytes_;
  int64_t used_ = slab_bytes_;  // bytes of the open slab; at first there is none, so there is no room
  int64_t slabs_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_ROW_PACKING_H_
