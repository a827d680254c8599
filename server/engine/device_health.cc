#include "server/engine/device_health.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace hookline {

absl::Status DeviceHealth::Judge(absl::Status status, Transfer& transfer) {
  if (!absl::IsInternal(status)) return status;
  const absl::Status again = transfer.Check();
  if (!absl::IsInternal(again)) return status;
  absl::Status lost = absl::UnavailableError(
      absl::StrCat("device ", devices_, " fails every operation; continue with the resume token: ", status.message()));
  absl::call_once(once_, [&] {
    if (scheduler_->ReplicaLost(executor_, lost)) {
      spdlog::error("device {} is lost; its batches run again on the model's other replicas: {}", devices_,
                    std::string(status.message()));
    } else {
      on_last_lost_(lost);
    }
  });
  return lost;
}

}  // namespace hookline
