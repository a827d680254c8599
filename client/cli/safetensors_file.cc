#include "client/cli/safetensors_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// Room for what the header gains when rows and columns are known.
constexpr int64_t kHeaderReserve = 1024;

absl::Status SystemError(const std::string& path) {
  const std::string what = absl::StrCat(path, ": ", std::strerror(errno));
  return errno == ENOSPC || errno == EDQUOT ? absl::ResourceExhaustedError(what) : absl::UnknownError(what);
}

absl::Status WriteAll(int descriptor, const std::string& path, const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = write(descriptor, p, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      return SystemError(path);
    }
    p += written;
    bytes -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

int64_t BytesOf(const std::string& dtype) { return dtype == "I64" ? 8 : dtype == "F16" || dtype == "BF16" ? 2 : 4; }

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Create(const std::string& path,
                                                                         const std::string& name,
                                                                         const std::string& dtype, int64_t width,
                                                                         std::map<std::string, std::string> metadata) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->path_ = path;
  file->temporary_ = path + ".part";
  file->name_ = name;
  file->dtype_ = dtype;
  file->width_ = width;
  file->metadata_ = std::move(metadata);
  file->descriptor_ = open(file->temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file->descriptor_ < 0) return SystemError(file->temporary_);
  file->header_bytes_ = static_cast<int64_t>(file->Header(0, {}).size()) + kHeaderReserve;
  file->header_bytes_ = (file->header_bytes_ + 63) / 64 * 64;
  const std::string blank(static_cast<size_t>(8 + file->header_bytes_), ' ');
  RETURN_IF_ERROR(WriteAll(file->descriptor_, file->temporary_, blank.data(), blank.size()));
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

absl::Status SafetensorsFile::Append(absl::Span<const uint8_t> bytes) {
  data_bytes_ += static_cast<int64_t>(bytes.size());
  return WriteAll(descriptor_, temporary_, bytes.data(), bytes.size());
}

std::string SafetensorsFile::Header(int64_t rows, absl::Span<const Column> columns) const {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata_;
  int64_t end = rows * width_ * BytesOf(dtype_);
  header[name_] = {{"dtype", dtype_}, {"shape", {rows, width_}}, {"data_offsets", {0, end}}};
  for (const Column& column : columns) {
    const int64_t begin = end;
    end += static_cast<int64_t>(column.bytes.size());
    header[column.name] = {{"dtype", column.dtype}, {"shape", {rows}}, {"data_offsets", {begin, end}}};
  }
  return header.dump();
}

absl::Status SafetensorsFile::Finish(int64_t rows, absl::Span<const Column> columns) {
  if (rows * width_ * BytesOf(dtype_) != data_bytes_) {
    return absl::InternalError(absl::StrCat(path_, ": ", data_bytes_, " bytes came for ", rows, " rows"));
  }
  for (const Column& column : columns) {
    RETURN_IF_ERROR(WriteAll(descriptor_, temporary_, column.bytes.data(), column.bytes.size()));
  }
  std::string header = Header(rows, columns);
  if (static_cast<int64_t>(header.size()) > header_bytes_) {
    return absl::InternalError(absl::StrCat(path_, ": the header needs ", header.size(), " bytes of ", header_bytes_));
  }
  header.resize(static_cast<size_t>(header_bytes_), ' ');
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(static_cast<uint64_t>(header_bytes_) >> (8 * i));
  if (lseek(descriptor_, 0, SEEK_SET) != 0) return SystemError(temporary_);
  RETURN_IF_ERROR(WriteAll(descriptor_, temporary_, length, sizeof(length)));
  RETURN_IF_ERROR(WriteAll(descriptor_, temporary_, header.data(), header.size()));
  if (fsync(descriptor_) != 0) return SystemError(temporary_);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return SystemError(path_);
  close(std::exchange(descriptor_, -1));
  return absl::OkStatus();
}

}  // namespace hookline::cli
