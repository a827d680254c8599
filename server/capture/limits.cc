#include "server/capture/limits.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr size_t kMaxIgnoredIds = 1024;

}  // namespace

absl::StatusOr<int64_t> ResolveMessageBytes(int64_t requested) {
  if (requested == 0) return kDefaultMessageBytes;
  if (requested < kMinMessageBytes || requested > kMaxMessageBytes) {
    return InvalidField("max_message_bytes", absl::StrCat(requested, " is not between ", kMinMessageBytes, " and ",
                                                          kMaxMessageBytes, "; 0 means ", kDefaultMessageBytes));
  }
  return requested;
}

absl::Status CheckIgnoredIds(absl::string_view field, size_t count) {
  if (count <= kMaxIgnoredIds) return absl::OkStatus();
  return InvalidField(field, absl::StrCat(count, " ids are more than ", kMaxIgnoredIds));
}

}  // namespace hookline
