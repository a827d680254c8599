#include "server/model/weight_taker.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hookline {
namespace {

std::string Quoted(absl::string_view name) {
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(name.substr(0, 120)), "'");
}

}  // namespace

at::Tensor WeightTaker::TakeOfAnyType(const std::string& name, const std::vector<int64_t>& sizes) {
  if (!status_.ok()) return {};
  const auto it = weights_.tensors.find(name);
  if (it == weights_.tensors.end()) {
    status_ = absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " of shape (",
                                                         absl::StrJoin(sizes, ", "), ") is missing"));
    return {};
  }
  const at::Tensor& tensor = it->second;
  if (!sizes.empty() && tensor.sizes() != at::IntArrayRef(sizes)) {
    status_ = absl::FailedPreconditionError(
        absl::StrCat(weights_.path, ": weight ", Quoted(name), " has shape (", absl::StrJoin(tensor.sizes(), ", "),
                     "), but its configuration makes (", absl::StrJoin(sizes, ", "), ")"));
    return {};
  }
  if (taken_.insert(name).second) parameters_ += tensor.numel();
  return tensor;
}

at::Tensor WeightTaker::Take(const std::string& name, const std::vector<int64_t>& sizes) {
  const at::Tensor tensor = TakeOfAnyType(name, sizes);
  if (tensor.defined() && !tensor.is_floating_point()) {
    status_ = absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " is of type ",
                                                         c10::toString(tensor.scalar_type()),
                                                         "; floating-point weights are read, not quantised ones"));
    return {};
  }
  return tensor;
}

at::Tensor WeightTaker::Bytes(const std::string& name, const std::vector<int64_t>& sizes) {
  const at::Tensor tensor = TakeOfAnyType(name, sizes);
  if (tensor.defined() && tensor.scalar_type() != at::kByte) {
    status_ = absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " is of type ",
                                                         c10::toString(tensor.scalar_type()), "; bytes are wanted"));
    return {};
  }
  return tensor;
}

at::Tensor WeightTaker::Linear(const std::string& name, int64_t in, int64_t out) {
  const at::Tensor weight = Get(name, {out, in});
  return weight.defined() ? weight.t() : weight;
}

at::Tensor WeightTaker::Get(const std::string& name, const std::vector<int64_t>& sizes) {
  const at::Tensor tensor = Take(name, sizes);
  return tensor.defined() ? tensor.to(device_, dtype_) : tensor;
}

at::Tensor WeightTaker::Table(const std::string& name, const std::vector<int64_t>& sizes) {
  const at::Tensor tensor = Take(name, sizes);
  return tensor.defined() ? tensor.to(device_) : tensor;
}

at::Tensor WeightTaker::Wide(const std::string& name, const std::vector<int64_t>& sizes) {
  const at::Tensor tensor = Take(name, sizes);
  return tensor.defined() ? tensor.to(device_, at::kFloat) : tensor;
}

std::vector<double> WeightTaker::Numbers(const std::string& name, int64_t count) {
  const at::Tensor tensor = Take(name, {count});
  if (!tensor.defined()) return std::vector<double>(static_cast<size_t>(count), 0);
  const at::Tensor wide = tensor.to(at::kDouble).contiguous();
  return {wide.data_ptr<double>(), wide.data_ptr<double>() + count};
}

void WeightTaker::Ignore(const std::string& name, const std::vector<int64_t>& sizes) {
  if (sizes.empty()) {
    taken_.insert(name);
  } else {
    Take(name, sizes);
  }
}

absl::Status WeightTaker::Finish() const {
  if (!status_.ok()) return status_;
  for (const auto& [name, tensor] : weights_.tensors) {
    if (taken_.count(name) == 0) {
      return absl::FailedPreconditionError(absl::StrCat(weights_.path, ": weight ", Quoted(name), " of shape (",
                                                        absl::StrJoin(tensor.sizes(), ", "),
                                                        ") is not one of this architecture's"));
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
