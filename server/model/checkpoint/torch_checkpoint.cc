#include "server/model/checkpoint/torch_checkpoint.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "server/base/checked_math.h"
#include "server/base/status.h"
#include "server/model/checkpoint/stored_tensor.h"
#include "server/model/checkpoint/unpickler.h"
#include "server/model/checkpoint/zip_archive.h"

namespace hookline {
namespace {

constexpr absl::string_view kPickle = "/data.pkl";
// "little" or "big".
constexpr int64_t kMaxByteOrderBytes = 16;
// torch.compile puts this before every name.
constexpr absl::string_view kCompiledPrefix = "_orig_mod.";

at::ScalarType TypeOf(absl::string_view storage_type) {
  if (storage_type == "FloatStorage") return at::kFloat;
  if (storage_type == "BFloat16Storage") return at::kBFloat16;
  if (storage_type == "HalfStorage") return at::kHalf;
  if (storage_type == "DoubleStorage") return at::kDouble;
  if (storage_type == "LongStorage") return at::kLong;
  if (storage_type == "IntStorage") return at::kInt;
  if (storage_type == "ShortStorage") return at::kShort;
  if (storage_type == "CharStorage") return at::kChar;
  if (storage_type == "BoolStorage") return at::kBool;
  return at::kByte;
}

// The archive's only folder, which torch.save names after the file.
absl::StatusOr<std::string> FindFolder(const ZipArchive& archive) {
  std::string folder;
  for (const auto& [name, entry] : archive.entries()) {
    if (!absl::EndsWith(name, kPickle)) continue;
    if (!folder.empty()) return absl::FailedPreconditionError("holds two pickles");
    folder = name.substr(0, name.size() - kPickle.size());
  }
  if (folder.empty()) return absl::FailedPreconditionError("holds no data.pkl, so torch.save did not write it");
  const std::string order = folder + "/byteorder";
  if (archive.entries().contains(order)) {
    ASSIGN_OR_RETURN(const std::string text, archive.Read(order, kMaxByteOrderBytes));
    if (text != "little") return absl::FailedPreconditionError("was written on a big-endian machine");
  }
  return folder;
}

// What `tensor` describes, in the archive. The error is a sentence about the tensor.
absl::StatusOr<StoredTensor> Place(const PickledTensor& tensor, const ZipArchive& archive, const std::string& folder) {
  const auto storage = archive.entries().find(absl::StrCat(folder, "/data/", tensor.storage_key));
  if (storage == archive.entries().end()) {
    return absl::FailedPreconditionError(absl::StrCat("has storage '",
                                                      absl::Utf8SafeCHexEscape(tensor.storage_key.substr(0, 120)),
                                                      "', which the archive does not hold"));
  }
  const ZipArchive::Entry& entry = storage->second;
  const at::ScalarType type = TypeOf(tensor.storage_type);
  if ((CheckedInt64(tensor.storage_values) * c10::elementSize(type)).value() != entry.bytes) {
    return absl::FailedPreconditionError(absl::StrCat("has a storage of ", tensor.storage_values, " values (",
                                                      tensor.storage_type, "), for which the archive holds ",
                                                      entry.bytes, " bytes"));
  }
  return StoredTensor::Place({archive.file(), entry.offset, entry.bytes, entry.crc}, type, tensor.offset, tensor.sizes,
                             tensor.strides);
}

absl::StatusOr<StateDict> Read(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const ZipArchive archive, ZipArchive::Open(file));
  const auto in_file = [&](const absl::Status& status) {
    return absl::FailedPreconditionError(absl::StrCat(file->path(), ": ", status.message()));
  };
  const absl::StatusOr<std::string> folder = FindFolder(archive);
  if (!folder.ok()) return in_file(folder.status());
  ASSIGN_OR_RETURN(const std::string pickle, archive.Read(absl::StrCat(*folder, kPickle), kMaxPickleBytes));
  const absl::StatusOr<std::vector<PickledTensor>> pickled =
      UnpickleStateDict(absl::MakeSpan(reinterpret_cast<const uint8_t*>(pickle.data()), pickle.size()));
  if (!pickled.ok()) return in_file(pickled.status());

  StateDict weights;
  weights.path = file->path();
  for (const PickledTensor& tensor : *pickled) {
    const std::string name(absl::StripPrefix(tensor.name, kCompiledPrefix));
    const auto bad = [&](absl::string_view what) {
      return in_file(absl::FailedPreconditionError(
          absl::StrCat("tensor '", absl::Utf8SafeCHexEscape(name.substr(0, 120)), "' ", what)));
    };
    absl::StatusOr<StoredTensor> placed = Place(tensor, archive, *folder);
    if (!placed.ok()) return bad(placed.status().message());
    if (!weights.tensors.emplace(name, *std::move(placed)).second) return bad("is there twice");
  }
  return weights;
}

}  // namespace

absl::StatusOr<StateDict> ReadTorchCheckpoint(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, InputFile::Open(path));
  try {
    return Read(file);
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace hookline
