#include "server/model/load/npz_checkpoint.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/formats/npy.h"
#include "server/formats/zip_archive.h"
#include "server/model/load/checkpoint_file.h"
#include "server/model/load/stored_tensor.h"

namespace hookline {
namespace {

absl::StatusOr<at::ScalarType> TypeOf(const std::string& descr) {
  if (descr == "<f4") return at::kFloat;
  if (descr == "<f2") return at::kHalf;
  if (descr == "<f8") return at::kDouble;
  return absl::FailedPreconditionError(absl::StrCat("has type ", Quoted(descr), "; <f2, <f4 and <f8 are supported"));
}

// Returns the strides, in values, of an array of these sizes.
std::vector<int64_t> Strides(const std::vector<int64_t>& sizes, bool fortran_order) {
  std::vector<int64_t> strides(sizes.size(), 1);
  CheckedInt64 stride = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t axis = fortran_order ? i : sizes.size() - 1 - i;
    strides[axis] = stride.value().value_or(0);  // StoredTensor::Make refuses sizes that overflow
    stride = stride * sizes[axis];
  }
  return strides;
}

// The error is a sentence about the array.
absl::StatusOr<StoredTensor> FindArray(const std::shared_ptr<const InputFile>& file, const ZipArchive::Entry& entry) {
  std::vector<uint8_t> begin(static_cast<size_t>(std::min(entry.bytes, kMaxNpyHeaderEnd)));
  RETURN_IF_ERROR(file->ReadAt(entry.offset, absl::MakeSpan(begin)));
  ASSIGN_OR_RETURN(const NpyHeader header, ParseNpyHeader(begin));
  ASSIGN_OR_RETURN(const at::ScalarType type, TypeOf(header.descr));
  const auto item = static_cast<int64_t>(c10::elementSize(type));
  if (header.data_offset % item != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("has a header of ", header.data_offset, " bytes, which NumPy does not write"));
  }
  // The checksum covers the header and the values together.
  return StoredTensor::Make({file, entry.offset, entry.bytes, entry.crc}, type, header.data_offset / item, header.shape,
                            Strides(header.shape, header.fortran_order));
}

absl::StatusOr<StateDict> Read(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const ZipArchive archive, ZipArchive::Open(file));
  StateDict weights;
  weights.path = file->path();
  for (const auto& [name, entry] : archive.entries()) {
    absl::string_view array = name;
    absl::StatusOr<StoredTensor> stored = absl::ConsumeSuffix(&array, ".npy")
                                              ? FindArray(file, entry)
                                              : absl::FailedPreconditionError("is not an .npy file");
    if (!stored.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat(file->path(), ": array ", Quoted(array), " ", stored.status().message()));
    }
    weights.tensors.emplace(std::string(array), *std::move(stored));
  }
  return weights;
}

}  // namespace

absl::StatusOr<StateDict> ReadNpz(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> file, OpenCheckpointFile(path));
  try {
    return Read(file);
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace hookline
