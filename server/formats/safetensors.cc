#include "server/formats/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/json.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// The header's length precedes it.
constexpr size_t kLengthBytes = 8;
// A tensor takes about a hundred bytes of header; the format's own limit is 100 MB.
constexpr uint64_t kMaxHeaderBytes = uint64_t{32} << 20;
// A header nests like {name: {"shape": [...]}}; JSON deeper than this is refused.
constexpr int kMaxJsonDepth = 8;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kAlignment = 64;

std::optional<int64_t> ItemBytes(absl::string_view dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL") return 1;
  return std::nullopt;
}

// Describes a dtype that is not supported.
absl::string_view KindOf(absl::string_view dtype) {
  if (absl::StartsWith(dtype, "F8")) return "float8 weights, which are not read";
  if (absl::StartsWith(dtype, "F4") || absl::StartsWith(dtype, "F6")) return "packed weights, which are not read";
  if (absl::StartsWith(dtype, "U")) return "unsigned numbers as in packed quantised weights, which are not read";
  return "which this version does not know";
}

bool ReadNumbers(const Json& json, const char* key, std::vector<uint64_t>* numbers) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array() || it->size() > kMaxDimensions) return false;
  for (const Json& number : *it) {
    if (!number.is_number_unsigned()) return false;
    numbers->push_back(number.get<uint64_t>());
  }
  return true;
}

// `data_begin` and `data_bytes` give the place of the values in the file.
absl::StatusOr<SafetensorsTensor> ReadTensor(const std::string& name, const Json& json, int64_t data_begin,
                                             int64_t data_bytes) {
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("tensor ", Quoted(name), " ", what));
  };
  SafetensorsTensor tensor;
  tensor.name = name;
  if (!json.is_object()) return bad("is not described by an object");
  const auto dtype = json.find("dtype");
  if (dtype == json.end() || !dtype->is_string()) return bad("has no dtype");
  tensor.dtype = dtype->get<std::string>();
  const std::optional<int64_t> item_bytes = ItemBytes(tensor.dtype);
  if (!item_bytes.has_value()) {
    return bad(absl::StrCat("has dtype ", Quoted(tensor.dtype), ", ", KindOf(tensor.dtype),
                            "; F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL are read"));
  }
  std::vector<uint64_t> shape, offsets;
  if (!ReadNumbers(json, "shape", &shape)) return bad("has no shape of at most 8 sizes");
  if (!ReadNumbers(json, "data_offsets", &offsets) || offsets.size() != 2) return bad("does not have two data_offsets");
  CheckedInt64 bytes = *item_bytes;
  for (uint64_t size : shape) {
    bytes *= size;
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  if (!bytes.value()) return bad("is larger than any file");
  if (offsets[0] > offsets[1] || !RangeFits(offsets[0], offsets[1] - offsets[0], data_bytes)) {
    return bad(absl::StrCat("has data_offsets ", offsets[0], " to ", offsets[1], ", but the file has ", data_bytes,
                            " bytes of data"));
  }
  tensor.offset = data_begin + static_cast<int64_t>(offsets[0]);
  tensor.bytes = static_cast<int64_t>(offsets[1] - offsets[0]);
  if (tensor.bytes != *bytes.value()) {
    return bad(absl::StrCat("has ", tensor.bytes, " bytes, but its shape and dtype make ", *bytes.value()));
  }
  return tensor;
}

absl::StatusOr<std::string> ReadText(const InputFile& file) {
  if (file.size() < static_cast<int64_t>(kLengthBytes))
    return absl::FailedPreconditionError("is too short for a safetensors file");
  uint8_t length[kLengthBytes];
  RETURN_IF_ERROR(file.ReadAt(0, absl::MakeSpan(length)));
  const uint64_t header_bytes = ReadLittleEndian(length);
  if (!RangeFits(kLengthBytes, header_bytes, file.size()) || header_bytes > kMaxHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat("says that its header has ", header_bytes,
                                                      " bytes; the file has ", file.size(), " and at most ",
                                                      kMaxHeaderBytes, " are read"));
  }
  std::string text(header_bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(kLengthBytes, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  return text;
}

// A name that is not UTF-8 must not throw.
std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ReadSafetensorsHeader(const InputFile& file) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(file));
  absl::StatusOr<Json> header = ParseJsonObject(text, kMaxJsonDepth);
  if (!header.ok()) return absl::FailedPreconditionError(absl::StrCat("its header ", header.status().message()));
  const int64_t data_begin = static_cast<int64_t>(kLengthBytes + text.size());
  const int64_t data_bytes = file.size() - data_begin;
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, json] : header->items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(SafetensorsTensor tensor, ReadTensor(name, json, data_begin, data_bytes));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const SafetensorsTensor& a, const SafetensorsTensor& b) { return a.offset < b.offset; });
  int64_t end = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    const int64_t begin = tensor.offset - data_begin;
    if (begin != end) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", Quoted(tensor.name), " begins at ", begin,
                       begin < end ? ", inside the one before, which ends at " : ", leaving a hole after ", end));
    }
    end = begin + tensor.bytes;
  }
  if (end != data_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("has ", data_bytes, " bytes of data, of which tensors use ", end));
  }
  return tensors;
}

absl::string_view SafetensorsDtype(const RowLayout& layout) {
  if (!layout.is_plain()) return "U8";
  switch (layout.dtype) {
    case Dtype::kFloat32:
      return "F32";
    case Dtype::kBFloat16:
      return "BF16";
    case Dtype::kFloat16:
      return "F16";
    case Dtype::kFloat8E4M3:
    case Dtype::kInt8:
      break;  // never plain
  }
  return "U8";
}

SafetensorsHeader::SafetensorsHeader(absl::Span<const std::pair<std::string, std::string>> metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [key, value] : metadata) json[key] = value;
  json_ = absl::StrCat("{\"__metadata__\":", Dump(json));
}

void SafetensorsHeader::Add(absl::string_view name, absl::string_view dtype, absl::Span<const int64_t> shape,
                            int64_t begin, int64_t end) {
  const nlohmann::ordered_json tensor = {{"dtype", std::string(dtype)},
                                         {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                                         {"data_offsets", {begin, end}}};
  absl::StrAppend(&json_, ",", Dump(nlohmann::ordered_json(std::string(name))), ":", Dump(tensor));
}

std::string SafetensorsHeader::Encode(size_t min_bytes) const {
  size_t bytes = std::max(min_bytes, kLengthBytes + json_.size() + 1);
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::string header;
  header.reserve(bytes);
  AppendLittleEndian(bytes - kLengthBytes, kLengthBytes, &header);
  absl::StrAppend(&header, json_, "}");
  header.resize(bytes, ' ');
  return header;
}

}  // namespace hookline
