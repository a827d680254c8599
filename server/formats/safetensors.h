// Reads and writes the header of safetensors files (format: github.com/huggingface/safetensors, README, "Format").
//
//   SafetensorsHeader header({{"format", "pt"}});
//   header.Add("w", "F32", {2, 3}, /*begin=*/0, /*end=*/24);
//   file.Write(header.Encode());    // and then 24 bytes of values
#ifndef HOOKLINE_SERVER_FORMATS_SAFETENSORS_H_
#define HOOKLINE_SERVER_FORMATS_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/input_file.h"
#include "server/base/row_layout.h"

namespace hookline {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;  // F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL
  std::vector<int64_t> shape;
  int64_t offset = 0;  // where the values begin in the file
  int64_t bytes = 0;   // as many as dtype and shape require
};

// Reads the header of `file` and checks it: length, JSON, dtypes, shapes, offsets inside the file, no overlaps, no
// holes. Returns the tensors in the order of their values. Errors: those of InputFile; FAILED_PRECONDITION, with a
// phrase that names the tensor but not the file.
absl::StatusOr<std::vector<SafetensorsTensor>> ReadSafetensorsHeader(const InputFile& file);

// Returns the dtype under which rows of `layout` are stored: that of their values, or U8 for rows with a scale or
// indices, which are bytes to the format.
absl::string_view SafetensorsDtype(const RowLayout& layout);

// The beginning of a file, up to its first value.
class SafetensorsHeader {
 public:
  explicit SafetensorsHeader(absl::Span<const std::pair<std::string, std::string>> metadata);

  // `begin` and `end` count bytes from the first value of the file. Each tensor begins where the one before it ended.
  void Add(absl::string_view name, absl::string_view dtype, absl::Span<const int64_t> shape, int64_t begin,
           int64_t end);

  // Returns the length, the JSON, and spaces up to a multiple of 64 bytes that is at least `min_bytes`, so that the
  // values are aligned for readers that map the file.
  std::string Encode(size_t min_bytes = 0) const;

 private:
  std::string json_;  // without the last brace
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_SAFETENSORS_H_
