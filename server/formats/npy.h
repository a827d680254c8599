// Reads and writes the header of NumPy's .npy format, versions 1.0 to 3.0 (numpy.lib.format's documentation).
#ifndef HOOKLINE_SERVER_FORMATS_NPY_H_
#define HOOKLINE_SERVER_FORMATS_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

// Every header that is accepted ends before this offset.
inline constexpr int64_t kMaxNpyHeaderEnd = 12 + 10000;

struct NpyHeader {
  std::string descr;  // type string, e.g. "<u2"
  bool fortran_order = false;
  std::vector<int64_t> shape;
  int64_t data_offset = 0;  // from the start of the file
};

// Returns whether a file begins with the magic bytes of the format.
bool IsNpy(absl::string_view file);

// Reads the header at the start of `file`, of which the first kMaxNpyHeaderEnd bytes are enough. FAILED_PRECONDITION
// says what is wrong; it does not name the file.
absl::StatusOr<NpyHeader> ParseNpyHeader(absl::Span<const uint8_t> file);

// The size of the header of any matrix (rows, width).
inline constexpr int64_t kNpyMatrixHeaderBytes = 128;

// Returns the header, of version 1.0, of a row-major matrix of values of type `descr`.
std::string NpyMatrixHeader(absl::string_view descr, int64_t rows, int64_t width);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_NPY_H_
