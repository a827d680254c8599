#include "client/cli/files/pt_file.h"

#include <filesystem>
#include <regex>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "server/base/checked_math.h"
#include "server/base/json.h"
#include "server/base/status.h"
#include "server/formats/unpickler.h"
#include "server/formats/zip_archive.h"

namespace hookline::cli {
namespace {

// The pickle of a tensor takes a few hundred bytes.
constexpr int64_t kMaxTensorPickleBytes = 64 << 10;
// hookline.json holds a hook point's name and a shape, which are shorter.
constexpr int64_t kMaxAboutBytes = 64 << 10;
// hookline.json is an object with a list in it.
constexpr int kMaxAboutDepth = 4;

// The unpickler reads dicts of tensors, so this puts a pickle that is a tensor into a dict: EMPTY_DICT, the key, the
// tensor, SETITEM, STOP. The tensor's opcodes cannot reach the dict or the key, because neither is in the memo.
absl::StatusOr<std::vector<uint8_t>> InADict(absl::string_view pickle) {
  if (pickle.size() <= 3 || pickle[0] != '\x80' || pickle.back() != '.') {
    return absl::FailedPreconditionError("its data.pkl is not a pickle of a tensor");
  }
  std::vector<uint8_t> dict = {0x80, static_cast<uint8_t>(pickle[1]), '}', 'X', 1, 0, 0, 0, 't'};
  dict.insert(dict.end(), pickle.begin() + 2, pickle.end() - 1);
  dict.insert(dict.end(), {'s', '.'});
  return dict;
}

absl::StatusOr<Dtype> DtypeOf(const std::string& storage) {
  if (storage == "FloatStorage") return Dtype::kFloat32;
  if (storage == "BFloat16Storage") return Dtype::kBFloat16;
  if (storage == "HalfStorage") return Dtype::kFloat16;
  return absl::FailedPreconditionError(
      absl::StrCat("holds a ", storage, "; float32, bfloat16 and float16 are accepted"));
}

std::string NameInside(const std::string& about) {
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(about, kMaxAboutDepth);
  if (!json.ok()) return "";
  const auto name = json->find("hook_point");
  return name != json->end() && name->is_string() ? name->get<std::string>() : "";
}

absl::StatusOr<PtFile> Read(const std::string& path) {
  PtFile result;
  ASSIGN_OR_RETURN(result.file, InputFile::Open(path));
  ASSIGN_OR_RETURN(const ZipArchive archive, ZipArchive::Open(result.file));
  std::string pickle_name, about_name;
  for (const auto& [name, entry] : archive.entries()) {
    if (absl::EndsWith(name, "/hookline.json")) about_name = name;
    if (absl::EndsWith(name, "/data.pkl")) pickle_name = name;
  }
  if (pickle_name.empty()) return absl::FailedPreconditionError("has no data.pkl");
  ASSIGN_OR_RETURN(const std::string pickle, archive.Read(pickle_name, kMaxTensorPickleBytes));
  ASSIGN_OR_RETURN(const std::vector<uint8_t> dict, InADict(pickle));
  ASSIGN_OR_RETURN(const std::vector<PickledTensor> tensors, UnpickleStateDict(dict));
  if (tensors.size() != 1) return absl::FailedPreconditionError("does not hold exactly one tensor");
  const PickledTensor& tensor = tensors[0];
  ASSIGN_OR_RETURN(result.dtype, DtypeOf(tensor.storage_type));
  if (tensor.sizes.size() != 2 || tensor.sizes[0] < 1 || tensor.sizes[1] < 1) {
    return absl::FailedPreconditionError("its tensor does not have the shape (rows, width)");
  }
  result.rows = tensor.sizes[0];
  result.width = tensor.sizes[1];
  if (tensor.strides.size() != 2 || tensor.strides[1] != 1 || (result.rows > 1 && tensor.strides[0] != result.width)) {
    return absl::FailedPreconditionError("its tensor is not contiguous; save tensor.contiguous()");
  }
  const std::string storage_name =
      absl::StrCat(absl::StripSuffix(pickle_name, "data.pkl"), "data/", tensor.storage_key);
  const auto storage = archive.entries().find(storage_name);
  if (storage == archive.entries().end()) return absl::FailedPreconditionError("its storage is missing");
  const CheckedInt64 begin = CheckedInt64(tensor.offset) * DtypeBytes(result.dtype);
  const CheckedInt64 bytes = CheckedInt64(result.rows) * result.width * DtypeBytes(result.dtype);
  if (!RangeFits(begin, bytes, storage->second.bytes)) {
    return absl::FailedPreconditionError("its tensor extends past its storage");
  }
  RETURN_IF_ERROR(archive.Check(storage_name));
  result.values_offset = storage->second.offset + *begin.value();
  if (!about_name.empty() && archive.entries().at(about_name).bytes <= kMaxAboutBytes) {
    ASSIGN_OR_RETURN(const std::string about, archive.Read(about_name, kMaxAboutBytes));
    result.hook_point = NameInside(about);
  }
  return result;
}

}  // namespace

std::string HookPointOfStem(const std::string& stem) {
  static const auto* const pattern =
      new std::regex("(blocks_[0-9]+_)?((?:attn|mlp|ln1|ln2|ln1_post|ln2_post|ln_final)_)?(hook_[A-Za-z0-9_]+)");
  std::smatch match;
  // std::regex recurses once for each character.
  if (stem.size() > 255 || !std::regex_match(stem, match, *pattern)) return stem;
  std::string name;
  if (match[1].matched) name = absl::StrReplaceAll(match[1].str(), {{"_", "."}});
  if (match[2].matched) absl::StrAppend(&name, match[2].str().substr(0, match[2].length() - 1), ".");
  return name + match[3].str();
}

absl::StatusOr<PtFile> ReadPtFile(const std::string& path) {
  absl::StatusOr<PtFile> file = Read(path);
  if (!file.ok()) {
    const bool named = absl::StrContains(file.status().message(), path);
    return absl::Status(file.status().code(), named ? std::string(file.status().message())
                                                    : absl::StrCat(path, ": ", file.status().message()));
  }
  if (file->hook_point.empty()) file->hook_point = HookPointOfStem(std::filesystem::path(path).stem().string());
  return file;
}

}  // namespace hookline::cli
