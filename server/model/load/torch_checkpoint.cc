#include "server/model/load/torch_checkpoint.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"
#include "server/formats/unpickler.h"
#include "server/formats/zip_archive.h"
#include "server/model/load/checkpoint_file.h"
#include "server/model/load/stored_tensor.h"

namespace hookline {
namespace {

constexpr absl::string_view kPickle = "/data.pkl";
// Enough bytes to recognize the older form.
constexpr int64_t kMagicBytes = 16;
// The content is "little" or "big".
constexpr int64_t kMaxByteOrderBytes = 16;
// torch.compile and DistributedDataParallel add these prefixes to every name, in the order in which they were applied.
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

// Returns the archive's only folder, which torch.save names after the file.
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

using Storages = absl::flat_hash_map<std::string, StoredRange>;  // by key

// Returns the tensor that `tensor` describes, in its storage. The error is a sentence about the tensor.
absl::StatusOr<StoredTensor> FindTensor(const PickledTensor& tensor, const Storages& storages) {
  const auto storage = storages.find(tensor.storage_key);
  if (storage == storages.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("has storage ", Quoted(tensor.storage_key), ", which the archive does not hold"));
  }
  const at::ScalarType type = TypeOf(tensor.storage_type);
  if ((CheckedInt64(tensor.storage_values) * c10::elementSize(type)).value() != storage->second.bytes) {
    return absl::FailedPreconditionError(absl::StrCat("has a storage of ", tensor.storage_values, " values (",
                                                      tensor.storage_type, "), for which the archive holds ",
                                                      storage->second.bytes, " bytes"));
  }
  return StoredTensor::Make(storage->second, type, tensor.offset, tensor.sizes, tensor.strides);
}

absl::StatusOr<StateDict> FindTensors(const std::string& path, const std::vector<PickledTensor>& tensors,
                                      const Storages& storages) {
  StateDict weights;
  weights.path = path;
  for (const PickledTensor& tensor : tensors) {
    const std::string name(WithoutWrappers(tensor.name));
    const auto bad = [&](absl::string_view what) {
      return absl::FailedPreconditionError(absl::StrCat("tensor ", Quoted(name), " ", what));
    };
    absl::StatusOr<StoredTensor> stored = FindTensor(tensor, storages);
    if (!stored.ok()) return bad(stored.status().message());
    if (!weights.tensors.emplace(name, *std::move(stored)).second) return bad("appears twice");
  }
  return weights;
}

// Returns the file's first bytes, at most `count`.
absl::StatusOr<std::vector<uint8_t>> ReadBegin(const InputFile& file, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(std::min(file.size(), count)));
  RETURN_IF_ERROR(file.ReadAt(0, absl::MakeSpan(bytes)));
  return bytes;
}

// In this form, each storage follows the number of its values.
absl::StatusOr<StateDict> ReadLegacy(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const std::vector<uint8_t> begin, ReadBegin(*file, kMaxPickleBytes));
  ASSIGN_OR_RETURN(const LegacyHead head, UnpickleLegacyHead(begin));
  absl::flat_hash_map<std::string, int64_t> value_bytes;  // by key
  for (const PickledTensor& tensor : head.tensors) {
    value_bytes[tensor.storage_key] = static_cast<int64_t>(c10::elementSize(TypeOf(tensor.storage_type)));
  }
  Storages storages;
  CheckedInt64 offset = head.bytes;
  for (const std::string& key : head.storage_keys) {
    uint8_t count[8] = {};
    if (!RangeFits(offset, sizeof(count), file->size())) return absl::FailedPreconditionError("is cut short");
    RETURN_IF_ERROR(file->ReadAt(*offset.value(), absl::MakeSpan(count)));
    const uint64_t values = ReadLittleEndian(count);
    offset += static_cast<int64_t>(sizeof(count));
    const auto item = value_bytes.find(key);
    if (item == value_bytes.end()) return absl::FailedPreconditionError("holds a storage that no tensor uses");
    const CheckedInt64 bytes = CheckedInt64(values) * item->second;
    if (!RangeFits(offset, bytes, file->size())) return absl::FailedPreconditionError("is cut short");
    storages[key] = {file, *offset.value(), *bytes.value(), /*crc=*/std::nullopt};
    offset += bytes;
  }
  return FindTensors(file->path(), head.tensors, storages);
}

absl::StatusOr<StateDict> ReadZip(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const ZipArchive archive, ZipArchive::Open(file));
  ASSIGN_OR_RETURN(const std::string folder, FindFolder(archive));
  ASSIGN_OR_RETURN(const std::string pickle, archive.Read(absl::StrCat(folder, kPickle), kMaxPickleBytes));
  ASSIGN_OR_RETURN(const std::vector<PickledTensor> tensors,
                   UnpickleStateDict(absl::MakeSpan(reinterpret_cast<const uint8_t*>(pickle.data()), pickle.size())));
  Storages storages;
  for (const auto& [name, entry] : archive.entries()) {
    absl::string_view key = name;
    if (!absl::ConsumePrefix(&key, folder) || !absl::ConsumePrefix(&key, "/data/")) continue;
    storages[key] = {file, entry.offset, entry.bytes, entry.crc};
  }
  return FindTensors(file->path(), tensors, storages);
}

absl::StatusOr<StateDict> Read(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const std::vector<uint8_t> begin, ReadBegin(*file, kMagicBytes));
  absl::StatusOr<StateDict> weights = IsLegacyFile(begin) ? ReadLegacy(file) : ReadZip(file);
  if (weights.ok() || absl::StrContains(weights.status().message(), file->path())) return weights;
  return absl::FailedPreconditionError(absl::StrCat(file->path(), ": ", weights.status().message()));
}

}  // namespace

absl::StatusOr<StateDict> ReadTorchCheckpoint(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, OpenCheckpointFile(path));
  try {
    return Read(file);
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace hookline
