// Files of one matrix of rows, whose number is known at the end only: .npy, and .pt as torch.save writes it. A file is
// its header, the rows, its trailer.
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
  uint32_t crc32 = 0;  // of the rows, as zlib counts it; .pt needs it

  int64_t bytes() const { return rows * width * DtypeBytes(dtype); }
};

// numpy.lib.format, version 1.0. bfloat16 is not among NumPy's types.
inline constexpr int64_t kNpyHeaderBytes = 128;
std::string NpyHeader(const RowMatrix& matrix);

// A zip archive, not compressed, with the values first, so that they can be written before they are counted:
// `archive/data/0`, then `archive/data.pkl` (the tensor), `archive/byteorder`, `archive/version`, and
// `archive/hookline.json` with the hook point's exact name. torch.load reads it, with weights_only too.
inline constexpr int64_t kPtHeaderBytes = 64;
std::string PtHeader(const RowMatrix& matrix);
std::string PtTrailer(const RowMatrix& matrix);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_ROW_FORMATS_H_
