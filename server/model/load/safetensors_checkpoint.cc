#include "server/model/load/safetensors_checkpoint.h"

#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/formats/safetensors.h"
#include "server/model/load/checkpoint_file.h"
#include "server/model/load/stored_tensor.h"

namespace hookline {
namespace {

// `dtype` is one that ReadSafetensorsHeader returns.
at::ScalarType TypeOf(absl::string_view dtype) {
  if (dtype == "F32") return at::kFloat;
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  if (dtype == "F64") return at::kDouble;
  if (dtype == "I64") return at::kLong;
  if (dtype == "I32") return at::kInt;
  if (dtype == "I16") return at::kShort;
  if (dtype == "I8") return at::kChar;
  if (dtype == "BOOL") return at::kBool;
  return at::kByte;
}

absl::StatusOr<StateDict> Read(const std::shared_ptr<const InputFile>& file) {
  ASSIGN_OR_RETURN(const std::vector<SafetensorsTensor> tensors, ReadSafetensorsHeader(*file));
  StateDict weights;
  weights.path = file->path();
  for (const SafetensorsTensor& tensor : tensors) {
    StoredRange range{file, tensor.offset, tensor.bytes, /*crc=*/std::nullopt};
    absl::StatusOr<StoredTensor> placed =
        StoredTensor::MakeContiguous(std::move(range), TypeOf(tensor.dtype), tensor.shape);
    if (!placed.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", Quoted(tensor.name), " ", placed.status().message()));
    }
    weights.tensors.emplace(tensor.name, *std::move(placed));
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
                                                      "; the file is damaged, cut short, or not a safetensors file"));
  }
  return weights;
}

}  // namespace hookline
