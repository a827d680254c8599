#include "server/base/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

constexpr absl::string_view kFieldPayload = "hookline/field";

}  // namespace

absl::Status InvalidField(absl::string_view field, absl::string_view message) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", message)), field);
}

absl::Status WithField(absl::Status status, absl::string_view field) {
  if (!field.empty()) status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  auto payload = status.GetPayload(kFieldPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

}  // namespace hookline
