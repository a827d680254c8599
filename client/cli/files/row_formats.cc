#include "client/cli/files/row_formats.h"

#include <zlib.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace hookline::cli {
namespace {

constexpr char kValues[] = "archive/data/0";
// What a 32-bit field of a zip archive says where a zip64 field has the number.
constexpr uint64_t kElsewhere = std::numeric_limits<uint32_t>::max();

void Append(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

// PKWARE APPNOTE 6.3.10, 4.3.7 and 4.3.12: the fields that both kinds of header share.
void AppendEntry(std::string& out, uint32_t crc32, uint64_t size, absl::string_view name, size_t extra_bytes) {
  Append(out, 45, 2);      // version needed: zip64
  Append(out, 0, 2);       // flags
  Append(out, 0, 2);       // stored
  Append(out, 0, 2);       // time
  Append(out, 0x0021, 2);  // date: 1980-01-01
  Append(out, crc32, 4);
  Append(out, std::min(size, kElsewhere), 4);
  Append(out, std::min(size, kElsewhere), 4);
  Append(out, name.size(), 2);
  Append(out, extra_bytes, 2);
}

void AppendDirectoryEntry(std::string& out, absl::string_view name, uint32_t crc32, uint64_t size, uint64_t offset) {
  std::string extra;
  if (size >= kElsewhere) {
    Append(extra, size, 8);
    Append(extra, size, 8);
  }
  if (offset >= kElsewhere) Append(extra, offset, 8);
  const size_t extra_bytes = extra.empty() ? 0 : 4 + extra.size();
  absl::StrAppend(&out, "PK\x01\x02");
  Append(out, 45, 2);  // made by
  AppendEntry(out, crc32, size, name, extra_bytes);
  Append(out, 0, 2);  // comment
  Append(out, 0, 2);  // disk
  Append(out, 0, 2);  // internal attributes
  Append(out, 0, 4);  // external attributes
  Append(out, std::min(offset, kElsewhere), 4);
  absl::StrAppend(&out, name);
  if (!extra.empty()) {
    Append(out, 1, 2);
    Append(out, extra.size(), 2);
    absl::StrAppend(&out, extra);
  }
}

void AppendDirectoryEnd(std::string& out, uint64_t entries, uint64_t size, uint64_t offset) {
  const uint64_t end = offset + size;
  absl::StrAppend(&out, "PK\x06\x06");
  Append(out, 44, 8);  // of what follows
  Append(out, 45, 2);
  Append(out, 45, 2);
  Append(out, 0, 4);
  Append(out, 0, 4);
  Append(out, entries, 8);
  Append(out, entries, 8);
  Append(out, size, 8);
  Append(out, offset, 8);
  absl::StrAppend(&out, "PK\x06\x07");
  Append(out, 0, 4);
  Append(out, end, 8);
  Append(out, 1, 4);
  absl::StrAppend(&out, "PK\x05\x06");
  Append(out, 0, 2);
  Append(out, 0, 2);
  Append(out, entries, 2);
  Append(out, entries, 2);
  Append(out, std::min(size, kElsewhere), 4);
  Append(out, std::min(offset, kElsewhere), 4);
  Append(out, 0, 2);
}

// A pickle's int; the longest is LONG1 of 8 bytes.
std::string Int(int64_t value) {
  std::string out;
  if (value < 256) {
    out = "K";
    Append(out, static_cast<uint64_t>(value), 1);
  } else if (value <= std::numeric_limits<int32_t>::max()) {
    out = "J";
    Append(out, static_cast<uint64_t>(value), 4);
  } else {
    out = "\x8a\x08";
    Append(out, static_cast<uint64_t>(value), 8);
  }
  return out;
}

std::string Text(absl::string_view text) {
  std::string out = "X";
  Append(out, text.size(), 4);
  return absl::StrCat(out, text);
}

// torch._utils._rebuild_tensor_v2(storage, 0, (rows, width), (width, 1), False, OrderedDict())
std::string TensorPickle(const RowMatrix& matrix) {
  const char* storage = matrix.dtype == v1::DTYPE_FLOAT32    ? "FloatStorage"
                        : matrix.dtype == v1::DTYPE_BFLOAT16 ? "BFloat16Storage"
                                                             : "HalfStorage";
  return absl::StrCat("\x80\x02", "ctorch._utils\n_rebuild_tensor_v2\n", "((", Text("storage"), "ctorch\n", storage,
                      "\n", Text("0"), Text("cpu"), Int(matrix.rows * matrix.width), "tQ", Int(0), Int(matrix.rows),
                      Int(matrix.width), "\x86", Int(matrix.width), Int(1), "\x86", "\x89",
                      "ccollections\nOrderedDict\n)RtR.");
}

}  // namespace

std::string NpyHeader(const RowMatrix& matrix) {
  std::string header = absl::StrCat("{'descr': '", matrix.dtype == v1::DTYPE_FLOAT32 ? "<f4" : "<f2",
                                    "', 'fortran_order': False, 'shape': (", matrix.rows, ", ", matrix.width, "), }");
  std::string out("\x93NUMPY\x01\x00", 8);
  Append(out, static_cast<uint64_t>(kNpyHeaderBytes) - 10, 2);
  out += header;
  out.resize(static_cast<size_t>(kNpyHeaderBytes) - 1, ' ');
  return out + "\n";
}

std::string PtHeader(const RowMatrix& matrix) {
  const auto bytes = static_cast<uint64_t>(matrix.bytes());
  std::string out = "PK\x03\x04";
  AppendEntry(out, matrix.crc32, kElsewhere, kValues, 20);
  absl::StrAppend(&out, kValues);
  Append(out, 1, 2);  // zip64
  Append(out, 16, 2);
  Append(out, bytes, 8);
  Append(out, bytes, 8);
  return out;
}

std::string PtTrailer(const RowMatrix& matrix) {
  const nlohmann::ordered_json about = {{"hook_point", matrix.hook_point}, {"shape", {matrix.rows, matrix.width}}};
  const auto begin = static_cast<uint64_t>(kPtHeaderBytes + matrix.bytes());
  std::string out, directory;
  AppendDirectoryEntry(directory, kValues, matrix.crc32, static_cast<uint64_t>(matrix.bytes()), 0);
  uint64_t entries = 1;
  const auto add = [&](absl::string_view name, const std::string& contents) {
    const auto crc =
        static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(contents.data()), contents.size()));
    AppendDirectoryEntry(directory, name, crc, contents.size(), begin + out.size());
    absl::StrAppend(&out, "PK\x03\x04");
    AppendEntry(out, crc, contents.size(), name, 0);
    absl::StrAppend(&out, name, contents);
    ++entries;
  };
  add("archive/data.pkl", TensorPickle(matrix));
  add("archive/byteorder", "little");
  add("archive/version", "3\n");
  add("archive/hookline.json", about.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  AppendDirectoryEnd(directory, entries, directory.size(), begin + out.size());
  return out + directory;
}

}  // namespace hookline::cli
