// Reads a .pt file that holds one tensor of rows, as torch.save and the original collector write it.
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
  std::string hook_point;  // as the file's contents name it, else HookPointOfStem of its name
  Dtype dtype = Dtype::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t values_offset = 0;  // of row 0 in the file; the other rows follow it

  int64_t row_bytes() const { return width * DtypeBytes(dtype); }
  // Fills `out` with the rows from `first` on. `out` holds a whole number of rows, all of which the file must have.
  absl::Status ReadRows(int64_t first, absl::Span<uint8_t> out) const {
    return file->ReadAt(values_offset + first * row_bytes(), out);
  }
};

// Reads all values once to verify their checksum; executes nothing in the file. FAILED_PRECONDITION, which names the
// file and the reason, for anything but one contiguous tensor of two dimensions in float32, bfloat16 or float16.
absl::StatusOr<PtFile> ReadPtFile(const std::string& path);

// Returns the hook point that a file's name without `.pt` stands for. The original collector replaced dots by
// underscores, so `blocks_3_hook_resid_post` is `blocks.3.hook_resid_post`. Returns a name of another form unchanged.
std::string HookPointOfStem(const std::string& stem);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_PT_FILE_H_
