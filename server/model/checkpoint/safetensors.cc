#include "server/model/checkpoint/safetensors.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/base/checked_math.h"
#include "server/base/status.h"
#include "server/model/checkpoint/checkpoint_file.h"
#include "server/model/checkpoint/stored_tensor.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// Of the header's length, before it.
constexpr int kLengthBytes = 8;
// A tensor takes about a hundred bytes of header; the format's own limit is 100 MB.
constexpr uint64_t kMaxHeaderBytes = uint64_t{32} << 20;
// {name: {"shape": [...]}}; deeper JSON is not read, however deep it is.
constexpr int kMaxJsonDepth = 8;
constexpr size_t kMaxDimensions = 8;

std::string Quoted(absl::string_view text) {
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(text.substr(0, 120)), "'");
}

std::optional<at::ScalarType> TypeOf(absl::string_view dtype) {
  if (dtype == "F32") return at::kFloat;
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  if (dtype == "F64") return at::kDouble;
  if (dtype == "I64") return at::kLong;
  if (dtype == "I32") return at::kInt;
  if (dtype == "I16") return at::kShort;
  if (dtype == "I8") return at::kChar;
  if (dtype == "U8") return at::kByte;
  if (dtype == "BOOL") return at::kBool;
  return std::nullopt;
}

// What a type that is not read is.
absl::string_view KindOf(absl::string_view dtype) {
  if (absl::StartsWith(dtype, "F8")) return "float8 weights, which are not read";
  if (absl::StartsWith(dtype, "F4") || absl::StartsWith(dtype, "F6")) return "packed weights, which are not read";
  if (absl::StartsWith(dtype, "U")) return "unsigned numbers as packed quantised weights have, which are not read";
  return "which this version does not know";
}

absl::StatusOr<Json> ParseJson(absl::string_view text, const std::string& where) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string) {
      if (text[i] == '\\') ++i;
      if (i < text.size() && text[i] == '"') in_string = false;
    } else if (text[i] == '"') {
      in_string = true;
    } else if (text[i] == '{' || text[i] == '[') {
      if (++depth > kMaxJsonDepth) return absl::FailedPreconditionError(absl::StrCat(where, " nests too deeply"));
    } else if (text[i] == '}' || text[i] == ']') {
      --depth;
    }
  }
  Json json = Json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::FailedPreconditionError(absl::StrCat(where, " is no JSON object"));
  return json;
}

struct Entry {
  std::string name;
  at::ScalarType type = at::kFloat;
  std::vector<int64_t> shape;
  // Of its bytes, from the first byte of data.
  int64_t begin = 0;
  int64_t end = 0;
};

bool ReadNumbers(const Json& json, const char* key, std::vector<uint64_t>* numbers) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array() || it->size() > kMaxDimensions) return false;
  for (const Json& number : *it) {
    if (!number.is_number_unsigned()) return false;
    numbers->push_back(number.get<uint64_t>());
  }
  return true;
}

absl::StatusOr<Entry> ReadEntry(const std::string& name, const Json& json, int64_t data_bytes) {
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("tensor ", Quoted(name), " ", what));
  };
  Entry entry;
  entry.name = name;
  if (!json.is_object()) return bad("is not described by an object");
  const auto dtype = json.find("dtype");
  if (dtype == json.end() || !dtype->is_string()) return bad("has no dtype");
  const std::optional<at::ScalarType> type = TypeOf(dtype->get_ref<const std::string&>());
  if (!type.has_value()) {
    return bad(absl::StrCat("has dtype ", Quoted(dtype->get_ref<const std::string&>()), ", ",
                            KindOf(dtype->get_ref<const std::string&>()),
                            "; F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL are read"));
  }
  entry.type = *type;
  std::vector<uint64_t> shape, offsets;
  if (!ReadNumbers(json, "shape", &shape)) return bad("has no shape of at most 8 sizes");
  if (!ReadNumbers(json, "data_offsets", &offsets) || offsets.size() != 2) return bad("has no two data_offsets");
  CheckedInt64 bytes = c10::elementSize(entry.type);
  for (uint64_t size : shape) {
    bytes *= size;
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  if (!bytes.value()) return bad("is larger than any file");
  if (offsets[0] > offsets[1] || !RangeFits(offsets[0], offsets[1] - offsets[0], data_bytes)) {
    return bad(absl::StrCat("has data_offsets ", offsets[0], " to ", offsets[1], ", but the file has ", data_bytes,
                            " bytes of data"));
  }
  entry.begin = static_cast<int64_t>(offsets[0]);
  entry.end = static_cast<int64_t>(offsets[1]);
  if (entry.end - entry.begin != *bytes.value()) {
    return bad(absl::StrCat("has ", entry.end - entry.begin, " bytes, but its shape and dtype make ", *bytes.value()));
  }
  return entry;
}

// The text of the header.
absl::StatusOr<std::string> ReadHeader(const InputFile& file) {
  if (file.size() < kLengthBytes) return absl::FailedPreconditionError("is too short for a safetensors file");
  uint8_t length[kLengthBytes];
  RETURN_IF_ERROR(file.ReadAt(0, absl::MakeSpan(length)));
  uint64_t header_bytes = 0;
  for (int i = 0; i < kLengthBytes; ++i) header_bytes |= static_cast<uint64_t>(length[i]) << (8 * i);
  if (!RangeFits(kLengthBytes, header_bytes, file.size()) || header_bytes > kMaxHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat("says that its header has ", header_bytes,
                                                      " bytes; the file has ", file.size(), " and at most ",
                                                      kMaxHeaderBytes, " are read"));
  }
  std::string text(header_bytes, '\0');
  RETURN_IF_ERROR(file.ReadAt(kLengthBytes, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  return text;
}

absl::StatusOr<StateDict> Read(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const std::string text, ReadHeader(*file));
  ASSIGN_OR_RETURN(const Json header, ParseJson(text, "its header"));
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(text.size());
  const int64_t data_bytes = file->size() - data_begin;
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(Entry entry, ReadEntry(name, json, data_bytes));
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  int64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", Quoted(entry.name), " begins at ", entry.begin,
                       entry.begin < end ? ", inside the one before, which ends at " : ", leaving a hole after ", end));
    }
    end = entry.end;
  }
  if (end != data_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("has ", data_bytes, " bytes of data, of which tensors use ", end));
  }
  StateDict weights;
  weights.path = file->path();
  for (const Entry& entry : entries) {
    StoredRange range{file, data_begin + entry.begin, entry.end - entry.begin, /*crc=*/std::nullopt};
    absl::StatusOr<StoredTensor> placed = StoredTensor::PlaceContiguous(std::move(range), entry.type, entry.shape);
    if (!placed.ok()) {
      return absl::FailedPreconditionError(absl::StrCat("tensor ", Quoted(entry.name), " ", placed.status().message()));
    }
    weights.tensors.emplace(entry.name, *std::move(placed));
  }
  return weights;
}

}  // namespace

absl::StatusOr<StateDict> ReadSafetensors(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, OpenCheckpointFile(path));
  absl::StatusOr<StateDict> weights;
  try {
    weights = Read(file);
  } catch (const std::exception& error) {
    weights = absl::FailedPreconditionError(error.what());
  }
  if (!weights.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", weights.status().message(),
                                                      "; the file is damaged, cut short, or no safetensors file"));
  }
  return weights;
}

}  // namespace hookline
