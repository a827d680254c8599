// Writes the pickle of one tensor, as torch.save does for `archive/data.pkl`.
#ifndef HOOKLINE_SERVER_FORMATS_PICKLE_WRITER_H_
#define HOOKLINE_SERVER_FORMATS_PICKLE_WRITER_H_

#include <cstdint>
#include <string>

#include "server/base/dtype.h"

namespace hookline {

// Returns the pickle of a contiguous matrix (rows, width) of a dtype without scales. The matrix is the whole storage
// with key "0". torch.load reads it, also with weights_only.
std::string PickleMatrix(Dtype dtype, int64_t rows, int64_t width);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_PICKLE_WRITER_H_
