#include "server/formats/pickle_writer.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/little_endian.h"

namespace hookline {
namespace {

// Returns the opcode that pushes `value`, which is not negative; the longest is LONG1 with 8 bytes.
std::string Int(int64_t value) {
  std::string out;
  if (value < 256) {
    out = "K";
    AppendLittleEndian(static_cast<uint64_t>(value), 1, &out);
  } else if (value <= std::numeric_limits<int32_t>::max()) {
    out = "J";
    AppendLittleEndian(static_cast<uint64_t>(value), 4, &out);
  } else {
    out = "\x8a\x08";
    AppendLittleEndian(static_cast<uint64_t>(value), 8, &out);
  }
  return out;
}

std::string Text(absl::string_view text) {
  std::string out = "X";
  AppendLittleEndian(text.size(), 4, &out);
  return absl::StrCat(out, text);
}

absl::string_view StorageType(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "FloatStorage";
    case Dtype::kBFloat16:
      return "BFloat16Storage";
    case Dtype::kFloat16:
      return "HalfStorage";
    case Dtype::kFloat8E4M3:
    case Dtype::kInt8:
      break;  // their scales are not part of a matrix
  }
  return "";
}

}  // namespace

// torch._utils._rebuild_tensor_v2(storage, 0, (rows, width), (width, 1), False, OrderedDict())
std::string PickleMatrix(Dtype dtype, int64_t rows, int64_t width) {
  return absl::StrCat("\x80\x02", "ctorch._utils\n_rebuild_tensor_v2\n", "((", Text("storage"), "ctorch\n",
                      StorageType(dtype), "\n", Text("0"), Text("cpu"), Int(rows * width), "tQ", Int(0), Int(rows),
                      Int(width), "\x86", Int(width), Int(1), "\x86", "\x89", "ccollections\nOrderedDict\n)RtR.");
}

}  // namespace hookline
