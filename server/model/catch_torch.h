// Turns exceptions of LibTorch into statuses, at the calls of LibTorch.
//
//   return CatchTorch([&] {
//     rows = at::matmul(x, weight);
//     return absl::OkStatus();
//   });
#ifndef HOOKLINE_SERVER_MODEL_CATCH_TORCH_H_
#define HOOKLINE_SERVER_MODEL_CATCH_TORCH_H_

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "server/model/torch_compat.h"

namespace hookline {

// Returns the status that `function` returns. If it throws, returns RESOURCE_EXHAUSTED when the device or the host is
// out of memory, else INTERNAL.
template <typename Function>
absl::Status CatchTorch(Function&& function) {
  try {
    return function();
  } catch (const c10::Error& error) {
    return IsOutOfMemory(error) ? absl::ResourceExhaustedError(error.what_without_backtrace())
                                : absl::InternalError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory for a forward pass");
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CATCH_TORCH_H_
