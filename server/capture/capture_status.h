// A capture as operators see it; the proto CaptureStatus.
#ifndef HOOKLINE_SERVER_CAPTURE_CAPTURE_STATUS_H_
#define HOOKLINE_SERVER_CAPTURE_CAPTURE_STATUS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace hookline {

enum class CaptureWait { kAdmission, kSequences, kDevice, kCopy, kReader };

struct CaptureStatus {
  int64_t id = 0;
  std::string client;
  std::string model;
  std::vector<std::string> hook_points;
  std::string source;  // `tokens`, `stream`, `dataset NAME` or `feed NAME`
  int64_t rows = 0;    // from the capture's start
  int64_t bytes = 0;   // since it was admitted
  absl::Duration age;
  absl::Duration running;  // since it was admitted
  int64_t new_rows = 0;    // since it was admitted
  CaptureWait waits_for = CaptureWait::kAdmission;
  absl::Duration idle;  // for which its client has neither read nor sent, if the capture waits for it
  int64_t slabs = 0;
  double device_share = 0;
  int captures_ahead = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_CAPTURE_STATUS_H_
