// Brings LibTorch's operators to the fake accelerator. If an operator has no kernel here, the CPU's kernel computes it
// on the same bytes, through CPU tensors at the places of the device's.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "server/model/torch_compat.h"
#include "tests/support/fake_device_state.h"

namespace hookline {
namespace fake_device {
namespace {

bool IsOnDevice(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kType; }

// Returns the bytes of `tensor` as a CPU tensor.
at::Tensor OnHost(const at::Tensor& tensor) {
  return at::from_blob(HostAddress(tensor.data_ptr()), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.scalar_type()));
}

at::Tensor EmptyLike(const at::Tensor& host) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(host.sizes(), host.strides(), DeviceAllocator(), keys, host.scalar_type());
}

// One call of an operator, on its way to the CPU and back.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(*stack) {
    const auto& arguments = op.schema().arguments();
    const size_t begin = stack->size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool is_written = arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite();
      arguments_.push_back((*stack)[begin + i]);
      if (is_written && arguments[i].kwarg_only() && arguments_.back().isTensor()) {
        (*stack)[begin + i] = TakeOut(arguments_.back().toTensor());
      } else {
        Replace(&(*stack)[begin + i], is_written);
      }
    }
  }

  void Run() {
    // A GPU's operators also guard their device.
    const c10::OptionalDeviceGuard guard(device_);
    op_.callBoxed(&stack_);
    for (const auto& [device, host] : outs_) PutBack(device, host);
    const auto& returns = op_.schema().returns();
    const size_t begin = stack_.size() - returns.size();
    for (size_t i = 0; i < returns.size(); ++i) BringBack(returns[i], &stack_[begin + i]);
    Launch(op_.schema().name(), reads_, writes_);
  }

 private:
  at::Tensor Take(const at::Tensor& tensor, bool is_written) {
    if (!IsOnDevice(tensor)) {
      TORCH_CHECK(!tensor.defined() || tensor.dim() == 0, op_.schema().name(),
                  ": a tensor of the host among the device's");
      return tensor;
    }
    TORCH_CHECK(!device_ || *device_ == tensor.device(), op_.schema().name(), ": tensors of two devices");
    device_ = tensor.device();
    (is_written ? writes_ : reads_).push_back(tensor);
    return OnHost(tensor);
  }

  // Some kernels resize the tensor that they write to although it has its size, which fails for memory that it does not
  // own. So they write to a new one.
  at::Tensor TakeOut(const at::Tensor& out) {
    const at::Tensor host = at::empty_like(Take(out, /*is_written=*/true));
    outs_.emplace_back(out, host);
    return host;
  }

  static void PutBack(const at::Tensor& device, const at::Tensor& host) {
    if (device.sizes() != host.sizes()) {
      // The operator was given an empty tensor to fill.
      c10::TensorImpl* const impl = device.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(EmptyLike(host).storage());
      impl->set_sizes_and_strides(host.sizes(), host.strides());
    }
    OnHost(device).copy_(host);
  }

  void Replace(c10::IValue* value, bool is_written) {
    if (value->isTensor()) {
      *value = Take(value->toTensor(), is_written);
    } else if (value->isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value->toTensorVector()) list.push_back(Take(tensor, is_written));
      *value = std::move(list);
    } else if (value->isOptionalTensorList()) {
      c10::List<c10::optional<at::Tensor>> list;
      for (const c10::optional<at::Tensor>& tensor : value->toOptionalTensorVector()) {
        list.push_back(tensor.has_value() ? c10::optional<at::Tensor>(Take(*tensor, is_written)) : c10::nullopt);
      }
      *value = std::move(list);
    } else if (value->isDevice() && value->toDevice().type() == kType) {
      device_ = value->toDevice();
      *value = c10::Device(at::kCPU);
    }
  }

  // An operator returns an argument that it wrote to, or a new tensor.
  void BringBack(const c10::Argument& declared, c10::IValue* value) {
    if (declared.alias_info() != nullptr) {
      TORCH_CHECK(declared.alias_info()->isWrite(), op_.schema().name(), ": a view that the fake device does not know");
      const auto& arguments = op_.schema().arguments();
      for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].alias_info() == nullptr) continue;
        if (*arguments[i].alias_info() == *declared.alias_info()) *value = arguments_[i];
      }
      return;
    }
    if (value->isTensor()) {
      *value = Bring(value->toTensor());
    } else if (value->isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value->toTensorVector()) list.push_back(Bring(tensor));
      *value = std::move(list);
    }
  }

  at::Tensor Bring(const at::Tensor& host) {
    if (!host.defined()) return host;
    const at::Tensor brought = EmptyLike(host);
    if (host.numel() > 0) std::memcpy(HostAddress(brought.data_ptr()), host.data_ptr(), brought.storage().nbytes());
    writes_.push_back(brought);
    return brought;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack& stack_;
  std::vector<c10::IValue> arguments_;  // in the caller's form
  c10::optional<c10::Device> device_;
  std::vector<at::Tensor> reads_, writes_;
  std::vector<std::pair<at::Tensor, at::Tensor>> outs_;  // on the device, and the CPU's stand-in for it
};

void Compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack).Run(); }

at::Tensor Empty(at::IntArrayRef size, c10::optional<at::ScalarType> dtype, c10::optional<at::Layout>,
                 c10::optional<at::Device> device, c10::optional<bool>, c10::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, DeviceAllocator(), keys, c10::dtype_or_default(dtype), format);
}

at::Tensor EmptyStrided(at::IntArrayRef size, at::IntArrayRef stride, c10::optional<at::ScalarType> dtype,
                        c10::optional<at::Layout>, c10::optional<at::Device> device, c10::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, DeviceAllocator(), keys, c10::dtype_or_default(dtype));
}

// Copies as CUDA does: a kernel copies within a device and between devices; a copy to or from the host does not wait
// only if the bytes need no conversion.
at::Tensor CopyFrom(const at::Tensor& source, const at::Tensor& destination, bool non_blocking) {
  if (destination.numel() == 0) return destination;
  const bool both = IsOnDevice(source) && IsOnDevice(destination);
  const c10::OptionalDeviceGuard guard(IsOnDevice(source) ? source.device() : destination.device());
  if (both) {
    if (source.device() == destination.device()) {
      Launch("copy_", {source}, {destination});
    } else {
      CopyAcross(source, destination);
    }
    OnHost(destination).copy_(OnHost(source));
    return destination;
  }
  const bool plain = source.scalar_type() == destination.scalar_type() && source.is_contiguous() &&
                     destination.is_contiguous() && source.sizes() == destination.sizes();
  if (non_blocking && plain) {
    CopyLater(source, destination);
    return destination;
  }
  const bool is_upload = IsOnDevice(destination);
  Launch("copy_", {source}, {destination});
  CountBlocking(is_upload);
  (is_upload ? OnHost(destination) : destination).copy_(is_upload ? source : OnHost(source));
  return destination;
}

at::Scalar ReadScalar(const at::Tensor& tensor) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  Launch("_local_scalar_dense", {tensor}, {});
  CountBlocking(/*is_upload=*/false);
  return OnHost(tensor).item();
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&Compute>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &Empty);
  m.impl("empty_strided", &EmptyStrided);
  m.impl("_copy_from", &CopyFrom);
  m.impl("_local_scalar_dense", &ReadScalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, at::IntArrayRef)>(&at::native::view));
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  // A GPU has one kernel for each of these; for a device without one, LibTorch composes them of other operators.
  for (const char* name : {
         "native_layer_norm",
#if HOOKLINE_TORCH_AT_LEAST(2, 5)
             "scaled_dot_product_attention",
#endif
#if HOOKLINE_TORCH_AT_LEAST(2, 9)
             "_fused_rms_norm",
#endif
             "silu", "gelu"
       }) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&Compute>());
  }
}

}  // namespace
}  // namespace fake_device
}  // namespace hookline
