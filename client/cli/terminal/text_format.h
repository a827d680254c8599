// The forms in which people read and write what the proto says in enums and numbers.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

// `float32`, `bfloat16`, `float16`; the number of one that is not known here.
std::string DtypeName(v1::Dtype dtype);
// The values of --dtype.
const std::map<std::string, v1::Dtype>& Dtypes();

// `budget`, `source_ended`, ...
std::string StopReasonName(v1::StopReason reason);

// 1234567 as `1,234,567`.
std::string WithCommas(int64_t number);
// 1500 as `1.50 K`, in powers of 1000, three digits.
std::string ShortNumber(double number);
// 90 as `1:30`, 3723 as `1:02:03`.
std::string ShortTime(double seconds);

// Splits at commas outside braces, so that `blocks.{2,5}.*,hook_embed` is two names.
std::vector<std::string> SplitHookPoints(const std::string& list);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_
