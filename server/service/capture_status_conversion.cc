#include "server/service/capture_status_conversion.h"

#include <algorithm>

namespace hookline {
namespace {

// This many are enough to recognise a capture by; a wildcard can stand for thousands.
constexpr size_t kMaxHookPoints = 100;

v1::CaptureWait ToProto(CaptureWait wait) {
  switch (wait) {
    case CaptureWait::kAdmission:
      return v1::CAPTURE_WAIT_ADMISSION;
    case CaptureWait::kSequences:
      return v1::CAPTURE_WAIT_SEQUENCES;
    case CaptureWait::kDevice:
      return v1::CAPTURE_WAIT_DEVICE;
    case CaptureWait::kCopy:
      return v1::CAPTURE_WAIT_COPY;
    case CaptureWait::kReader:
      return v1::CAPTURE_WAIT_READER;
  }
  return v1::CAPTURE_WAIT_UNSPECIFIED;
}

}  // namespace

v1::CaptureStatus ToProto(const CaptureStatus& status) {
  v1::CaptureStatus out;
  out.set_id(status.id);
  out.set_client(status.client);
  out.set_model(status.model);
  const size_t names = std::min(status.hook_points.size(), kMaxHookPoints);
  for (size_t i = 0; i < names; ++i) out.add_hook_points(status.hook_points[i]);
  out.set_hook_point_count(static_cast<int32_t>(status.hook_points.size()));
  out.set_source(status.source);
  out.set_rows(status.rows);
  out.set_bytes(status.bytes);
  if (const double seconds = absl::ToDoubleSeconds(status.running); seconds > 0) {
    out.set_rows_per_second(static_cast<double>(status.new_rows) / seconds);
    out.set_bytes_per_second(static_cast<double>(status.bytes) / seconds);
  }
  out.set_age_seconds(absl::ToDoubleSeconds(status.age));
  out.set_waits_for(ToProto(status.waits_for));
  out.set_idle_seconds(absl::ToDoubleSeconds(status.idle));
  out.set_slabs(status.slabs);
  out.set_device_share(status.device_share);
  out.set_captures_ahead(status.captures_ahead);
  return out;
}

}  // namespace hookline
