// Reads a .pt file that holds one tensor of rows, as torch.save writes it and as the original collector left them.
#ifndef HOOKLINE_CLIENT_CLI_FILES_PT_FILE_H_
#define HOOKLINE_CLIENT_CLI_FILES_PT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/dtype.h"
#include "server/base/input_file.h"

namespace hookline::cli {

struct PtFile {
  std::shared_ptr<const InputFile> file;
  std::string hook_point;  // exact where the file tells it, else what its name says
  Dtype dtype = Dtype::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t values_offset = 0;  // of row 0 in the file; rows follow one another

  int64_t row_bytes() const { return width * DtypeBytes(dtype); }
  // `out` is as long as the rows from `first` on that it is for, which the file must have.
  absl::Status ReadRows(int64_t first, absl::Span<uint8_t> out) const {
    return file->ReadAt(values_offset + first * row_bytes(), out);
  }
};

// Reads all of the file once, for its checksum; nothing in it is executed. FAILED_PRECONDITION naming the file and what
// is wrong with it: anything but one contiguous tensor of two dimensions in float32, bfloat16 or float16.
absl::StatusOr<PtFile> ReadPtFile(const std::string& path);

// The hook point that the original collector meant by a file's name without `.pt`, in which underscores stand for dots
// too: `blocks_3_hook_resid_post` is `blocks.3.hook_resid_post`.
std::string HookPointOfStem(const std::string& stem);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_PT_FILE_H_
