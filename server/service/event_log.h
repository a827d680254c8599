// Log lines that programs read too: events with named values.
//
//   LogEvent("call", {{"client", "alice"}, {"rows", int64_t{12}}, {"seconds", 0.5}});
//
// With --log-format text: `... info call client=alice rows=12 seconds=0.5`; json:
// `{"time":...,"level":"info","message":"call","client":"alice","rows":12,"seconds":0.5}`.
#ifndef HOOKLINE_SERVER_SERVICE_EVENT_LOG_H_
#define HOOKLINE_SERVER_SERVICE_EVENT_LOG_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"

namespace hookline {

enum class LogFormat { kText, kJson };

struct LogField {
  absl::string_view name;  // a word
  std::variant<std::string, int64_t, double> value;
};

// Logs at level info, by spdlog's default logger, in the format given to SetEventFormat. Strings may come from clients:
// they are escaped, and quoted if they could forge another value. Thread-safe.
//
// Clients can cause any number of such lines, so they must not hold up the threads that log them: while the log is a
// pipe whose reader is behind, they are left out, and a later line says how many.
void LogEvent(absl::string_view message, const std::vector<LogField>& fields);

// Sets the format of LogEvent's lines, which is text at first.
void SetEventFormat(LogFormat format);

// The name of the logger whose messages are members of a JSON object; LogEvent uses it after SetEventFormat(kJson).
inline constexpr char kEventLogger[] = "events";

// Returns `text` as a string of JSON, quotes included.
std::string JsonString(absl::string_view text);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_EVENT_LOG_H_
