#include "server/model/load/weight_taker.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"

namespace hookline {
namespace {

int64_t BytesOf(CheckedInt64 values, at::ScalarType type) {
  return (values * static_cast<int64_t>(c10::elementSize(type))).value().value_or(std::numeric_limits<int64_t>::max());
}

}  // namespace

const StoredTensor* WeightTaker::FindOfAnyType(const std::string& name, const std::vector<int64_t>& sizes) {
  if (!status_.ok()) return nullptr;
  const auto it = weights_.tensors.find(name);
  if (it == weights_.tensors.end()) {
    status_ = absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " of shape (",
                                                         absl::StrJoin(sizes, ", "), ") is missing"));
    return nullptr;
  }
  const StoredTensor& tensor = it->second;
  if (!sizes.empty() && tensor.sizes() != at::IntArrayRef(sizes)) {
    status_ = absl::FailedPreconditionError(
        absl::StrCat(weights_.path, ": weight ", Quoted(name), " has shape (", absl::StrJoin(tensor.sizes(), ", "),
                     "), but the configuration requires (", absl::StrJoin(sizes, ", "), ")"));
    return nullptr;
  }
  if (taken_.emplace(name, 0).second) parameters_ += tensor.numel();
  return &tensor;
}

const StoredTensor* WeightTaker::Find(const std::string& name, const std::vector<int64_t>& sizes) {
  const StoredTensor* const tensor = FindOfAnyType(name, sizes);
  if (tensor != nullptr && !tensor->is_floating_point()) {
    status_ = absl::FailedPreconditionError(
        absl::StrCat(weights_.path, ": weight ", Quoted(name), " is of type ", c10::toString(tensor->scalar_type()),
                     "; only floating-point weights are supported, not quantised ones"));
    return nullptr;
  }
  return tensor;
}

const StoredTensor* WeightTaker::FindBytes(const std::string& name, const std::vector<int64_t>& sizes) {
  const StoredTensor* const tensor = FindOfAnyType(name, sizes);
  if (tensor == nullptr || tensor->scalar_type() == at::kByte) return tensor;
  status_ = absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " is of type ",
                                                       c10::toString(tensor->scalar_type()), "; expected bytes"));
  return nullptr;
}

at::Tensor WeightTaker::Read(const std::string& name, at::ScalarType dtype) {
  return reader_ ? OrError(reader_->Read(name, dtype)) : at::Tensor();
}

at::Tensor WeightTaker::OrError(absl::StatusOr<at::Tensor> values) {
  if (values.ok()) return *std::move(values);
  status_ = std::move(values).status();
  return {};
}

at::Tensor WeightTaker::Take(const std::string& name, const std::vector<int64_t>& sizes,
                             std::optional<at::ScalarType> dtype) {
  const StoredTensor* const tensor = Find(name, sizes);
  if (tensor == nullptr) return {};
  // On the way to another device a weight crosses the bus as it is stored.
  const at::ScalarType stored = tensor->scalar_type();
  taken_[name] = BytesOf(tensor->numel(), dtype.value_or(stored));
  const at::Device device = DeviceOf(name);
  const at::Tensor values = Read(name, device.is_cpu() ? dtype.value_or(stored) : stored);
  return values.defined() ? values.to(device, dtype.value_or(stored)) : values;
}

at::Tensor WeightTaker::Bytes(const std::string& name, const std::vector<int64_t>& sizes) {
  return FindBytes(name, sizes) == nullptr ? at::Tensor() : Read(name, at::kByte);
}

at::Tensor WeightTaker::Decoded(const std::string& name, const std::vector<int64_t>& stored,
                                const std::vector<int64_t>& sizes, WeightReader::DecodePiece decode) {
  if (FindBytes(name, stored) == nullptr) return {};
  CheckedInt64 values = 1;
  for (const int64_t size : sizes) values *= size;
  taken_[name] = BytesOf(values, dtype_);
  if (!reader_) return {};
  const at::Tensor decoded = OrError(reader_->Decode(name, sizes, dtype_, decode));
  return decoded.defined() ? decoded.to(DeviceOf(name)) : decoded;
}

at::Tensor WeightTaker::Linear(const std::string& name, int64_t in, int64_t out) {
  const at::Tensor weight = Get(name, {out, in});
  return weight.defined() ? weight.t() : weight;
}

at::Tensor WeightTaker::Get(const std::string& name, const std::vector<int64_t>& sizes) {
  return Take(name, sizes, dtype_);
}

at::Tensor WeightTaker::Table(const std::string& name, const std::vector<int64_t>& sizes) {
  return Take(name, sizes, /*dtype=*/std::nullopt);
}

at::Tensor WeightTaker::Again(const std::string& name, const at::Tensor& values, const std::string& as) {
  const at::Device device = DeviceOf(as);
  if (device == DeviceOf(name)) return values;
  taken_[as] = taken_[name];
  return values.defined() ? values.to(device) : values;
}

at::Tensor WeightTaker::Wide(const std::string& name, const std::vector<int64_t>& sizes) {
  return Take(name, sizes, at::kFloat);
}

std::vector<double> WeightTaker::Numbers(const std::string& name, int64_t count) {
  std::vector<double> none(static_cast<size_t>(count), 0);
  if (Find(name, {count}) == nullptr) return none;
  const at::Tensor values = Read(name, at::kDouble);
  if (!values.defined()) return none;
  const double* const numbers = values.data_ptr<double>();
  return {numbers, numbers + count};
}

void WeightTaker::Ignore(const std::string& name, const std::vector<int64_t>& sizes) {
  if (sizes.empty()) {
    taken_.emplace(name, 0);
  } else {
    Find(name, sizes);
  }
}

std::vector<std::string> WeightTaker::IgnoreRest(
    absl::FunctionRef<bool(const std::string& name, const StoredTensor& tensor)> unused) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : weights_.tensors) {
    if (taken_.count(name) == 0 && unused(name, tensor)) names.push_back(name);
  }
  for (const std::string& name : names) taken_.emplace(name, 0);
  return names;
}

absl::Status WeightTaker::Finish() const {
  if (!status_.ok()) return status_;
  for (const auto& [name, tensor] : weights_.tensors) {
    if (taken_.count(name) == 0) {
      return absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " of shape (",
                                                        absl::StrJoin(tensor.sizes(), ", "),
                                                        ") does not belong to this architecture"));
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
