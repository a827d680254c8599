// Converts the protocol's enums and numbers to the text that people read and write.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

// Returns `float32`, `bfloat16`, ..., or `dtype N` for a value that this program does not know.
std::string DtypeName(v1::Dtype dtype);
// The values of --dtype.
const std::map<std::string, v1::Dtype>& Dtypes();

// Returns `budget`, `source_ended`, ...
std::string StopReasonName(v1::StopReason reason);

// Formats 1234567 as `1,234,567`.
std::string WithCommas(int64_t number);
// Formats 1500 as `1.50 K`: three digits, in powers of 1000.
std::string ShortNumber(double number);
// Formats 90 as `1:30`, 3723 as `1:02:03`.
std::string ShortTime(double seconds);

// Splits at commas outside braces, so that `blocks.{2,5}.*,hook_embed` is two names.
std::vector<std::string> SplitHookPoints(const std::string& list);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_TEXT_FORMAT_H_
