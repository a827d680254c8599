#include "server/capture/limits.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::StatusOr<int64_t> ResolveMessageBytes(int64_t requested) {
  if (requested == 0) return kDefaultMessageBytes;
  if (requested < kMinMessageBytes || requested > kMaxMessageBytes) {
    return InvalidField("max_message_bytes", absl::StrCat(requested, " is not between ", kMinMessageBytes, " and ",
                                                          kMaxMessageBytes, "; 0 means ", kDefaultMessageBytes));
  }
  return requested;
}

}  // namespace hookline
