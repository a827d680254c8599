#include "tests/bench/capture/bare_forward.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "server/base/status.h"

namespace hookline {

absl::Status RunBareForward(Model& model, int hook_point, int64_t sequences, int64_t length, int64_t batch) {
  const at::Device device(model.info().device);
  for (int64_t done = 0; done < sequences; done += batch) {
    const int64_t count = std::min(batch, sequences - done);
    const at::Tensor ids = (at::arange(count * length, at::kLong) % 251).view({count, length}).to(device);
    at::Tensor kept;
    RETURN_IF_ERROR(
        model.Forward(ids, /*lengths=*/{}, {hook_point}, [&](int, const at::Tensor& value) { kept = value; }));
    // Reading one value waits until an accelerator has finished.
    (void)kept.select(0, 0).select(0, 0).item<float>();
  }
  return absl::OkStatus();
}

}  // namespace hookline
