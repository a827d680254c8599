// Headers and trailers of files that hold one matrix of rows: .npy, and .pt as torch.save writes it. The number of rows
// is known only at the end. A file is its header, the rows and, for .pt, its trailer.
#ifndef HOOKLINE_CLIENT_CLI_FILES_ROW_FORMATS_H_
#define HOOKLINE_CLIENT_CLI_FILES_ROW_FORMATS_H_

#include <cstdint>
#include <string>

#include "server/base/dtype.h"

namespace hookline::cli {

struct RowMatrix {
  std::string hook_point;
  Dtype dtype = Dtype::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  uint32_t crc32 = 0;  // of the rows, by zlib; only .pt needs it

  int64_t bytes() const { return rows * width * DtypeBytes(dtype); }
};

// The format is numpy.lib.format, version 1.0. NumPy has no bfloat16.
inline constexpr int64_t kNpyHeaderBytes = 128;
std::string NpyHeader(const RowMatrix& matrix);

// The format is an uncompressed zip archive with the values first, so that they can be written before they are counted:
// `archive/data/0`, then `archive/data.pkl` (the tensor), `archive/byteorder`, `archive/version`, and
// `archive/hookline.json` with the hook point's exact name. torch.load reads it, also with weights_only.
inline constexpr int64_t kPtHeaderBytes = 64;
std::string PtHeader(const RowMatrix& matrix);
std::string PtTrailer(const RowMatrix& matrix);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_ROW_FORMATS_H_
