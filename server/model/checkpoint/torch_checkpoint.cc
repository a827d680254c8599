#include "server/model/checkpoint/torch_checkpoint.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/model/checkpoint/tensor_view.h"
#include "server/model/checkpoint/unpickler.h"
#include "server/model/checkpoint/zip_archive.h"

namespace hookline {
namespace {

constexpr absl::string_view kPickle = "/data.pkl";
// What torch.compile and DistributedDataParallel put before every name, in the order in which they were applied.
constexpr absl::string_view kWrapperPrefixes[] = {"_orig_mod.", "module."};

absl::string_view WithoutWrappers(absl::string_view name) {
  for (size_t length = 0; length != name.size();) {
    length = name.size();
    for (const absl::string_view prefix : kWrapperPrefixes) absl::ConsumePrefix(&name, prefix);
  }
  return name;
}

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
  for (const auto& [name, data] : archive.entries()) {
    if (!absl::EndsWith(name, kPickle)) continue;
    if (!folder.empty()) return absl::FailedPreconditionError("holds two pickles");
    folder = name.substr(0, name.size() - kPickle.size());
  }
  if (folder.empty()) return absl::FailedPreconditionError("holds no data.pkl, so torch.save did not write it");
  const auto order = archive.entries().find(folder + "/byteorder");
  if (order != archive.entries().end() &&
      absl::string_view(reinterpret_cast<const char*>(order->second.data()), order->second.size()) != "little") {
    return absl::FailedPreconditionError("was written on a big-endian machine");
  }
  return folder;
}

absl::StatusOr<StateDict> Read(std::shared_ptr<const MappedFile> file) {
  ASSIGN_OR_RETURN(const ZipArchive archive, ZipArchive::Open(file));
  const auto in_file = [&](const absl::Status& status) {
    return absl::FailedPreconditionError(absl::StrCat(file->path(), ": ", status.message()));
  };
  const absl::StatusOr<std::string> folder = FindFolder(archive);
  if (!folder.ok()) return in_file(folder.status());
  const absl::StatusOr<std::vector<PickledTensor>> pickled =
      UnpickleStateDict(archive.entries().at(absl::StrCat(*folder, kPickle)));
  if (!pickled.ok()) return in_file(pickled.status());

  StateDict weights;
  weights.path = file->path();
  uint64_t copied_bytes = 0;
  for (const PickledTensor& tensor : *pickled) {
    const std::string name(WithoutWrappers(tensor.name));
    const auto bad = [&](absl::string_view what) {
      return in_file(absl::FailedPreconditionError(
          absl::StrCat("tensor '", absl::Utf8SafeCHexEscape(name.substr(0, 120)), "' ", what)));
    };
    const auto storage = archive.entries().find(absl::StrCat(*folder, "/data/", tensor.storage_key));
    if (storage == archive.entries().end()) {
      return bad(absl::StrCat("has storage '", absl::Utf8SafeCHexEscape(tensor.storage_key.substr(0, 120)),
                              "', which the archive does not hold"));
    }
    const at::ScalarType type = TypeOf(tensor.storage_type);
    if (static_cast<uint64_t>(tensor.storage_values) != storage->second.size() / c10::elementSize(type) ||
        storage->second.size() % c10::elementSize(type) != 0) {
      return bad(absl::StrCat("has a storage of ", tensor.storage_values, " values (", tensor.storage_type,
                              "), for which the archive holds ", storage->second.size(), " bytes"));
    }
    // torch.save aligns storages. Where something else did not, views become copies, which a storage that many tensors
    // share would make any number of.
    if (reinterpret_cast<uintptr_t>(storage->second.data()) % c10::elementSize(type) != 0) {
      copied_bytes += storage->second.size();
      if (copied_bytes > file->bytes().size()) return bad("shares a storage that is not aligned for its type");
    }
    absl::StatusOr<at::Tensor> view =
        ViewTensor(file, storage->second, type, tensor.offset, tensor.sizes, tensor.strides);
    if (!view.ok()) return bad(view.status().message());
    if (!weights.tensors.emplace(name, *std::move(view)).second) return bad("is there twice");
  }
  return weights;
}

}  // namespace

absl::StatusOr<StateDict> ReadTorchCheckpoint(const std::string& path) {
  ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  try {
    return Read(std::move(file));
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace hookline
