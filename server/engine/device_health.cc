#include "server/engine/device_health.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {

absl::Status DeviceHealth::Judge(absl::Status status, Transfer& transfer) {
  if (!absl::IsInternal(status)) return status;
  const absl::Status again = transfer.Check();
  if (!absl::IsInternal(again)) return status;
  const absl::Status lost = absl::UnavailableError(absl::StrCat(
      "device ", device_, " fails whatever it is asked for; continue with the resume token: ", status.message()));
  absl::call_once(once_, [&] {
    scheduler_->EndAll(lost);
    on_lost_(lost);
  });
  return lost;
}

}  // namespace hookline
