// Writes a safetensors file (github.com/huggingface/safetensors, README, "Format") whose number of rows is known at the
// end only. Until Finish has returned there is no file of that name.
#ifndef HOOKLINE_CLIENT_CLI_SAFETENSORS_FILE_H_
#define HOOKLINE_CLIENT_CLI_SAFETENSORS_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline::cli {

// A tensor that follows the rows.
struct Column {
  std::string name;
  std::string dtype;  // "I64", "I32", "U32"
  absl::Span<const uint8_t> bytes;
};

class SafetensorsFile {
 public:
  // One tensor `name` of (rows, width), `dtype` as the format names it ("F32"), and text about it.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Create(const std::string& path, const std::string& name,
                                                                 const std::string& dtype, int64_t width,
                                                                 std::map<std::string, std::string> metadata);
  // Removes what was not finished.
  ~SafetensorsFile();

  // Rows, little-endian, one after another.
  absl::Status Append(absl::Span<const uint8_t> bytes);

  // Writes columns and header, makes all of it durable and gives it its name. Each column has `rows` values.
  absl::Status Finish(int64_t rows, absl::Span<const Column> columns);

  const std::string& path() const { return path_; }

 private:
  SafetensorsFile() = default;
  std::string Header(int64_t rows, absl::Span<const Column> columns) const;

  std::string path_;
  std::string temporary_;
  std::string name_;
  std::string dtype_;
  int64_t width_ = 0;
  std::map<std::string, std::string> metadata_;
  int descriptor_ = -1;
  int64_t header_bytes_ = 0;
  int64_t data_bytes_ = 0;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_SAFETENSORS_FILE_H_
