#include "server/service/event_log.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

std::atomic<LogFormat> event_format{LogFormat::kText};
std::atomic<int64_t> left_out{0};

// Returns whether the log, which is standard error, is a pipe that is more than half full. The other half is left for
// other lines, which are few.
bool ReaderIsBehind() {
  const int capacity = fcntl(STDERR_FILENO, F_GETPIPE_SZ);
  int queued = 0;
  return capacity > 0 && ioctl(STDERR_FILENO, FIONREAD, &queued) == 0 && queued > capacity / 2;
}

bool IsPlain(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("._:/@+-", c); }

// Returns the value as a word, or in double quotes, with a backslash before each quote and backslash in it.
std::string TextOf(const std::string& value) {
  if (!value.empty() && std::all_of(value.begin(), value.end(), IsPlain)) return value;
  return JsonString(value);
}

template <typename StringText>
std::string ValueOf(const LogField& field, const StringText& text_of) {
  if (const auto* text = std::get_if<std::string>(&field.value); text != nullptr) return text_of(*text);
  if (const auto* count = std::get_if<int64_t>(&field.value); count != nullptr) return absl::StrCat(*count);
  return absl::StrCat(std::get<double>(field.value));
}

}  // namespace

std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  // Escaped returns valid UTF-8 without control characters, in which JSON escapes only these two.
  for (const char c : Escaped(text)) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  out.push_back('"');
  return out;
}

void SetEventFormat(LogFormat format) { event_format = format; }

void LogEvent(absl::string_view message, const std::vector<LogField>& fields) {
  if (!spdlog::should_log(spdlog::level::info)) return;
  if (ReaderIsBehind()) {
    ++left_out;
    return;
  }
  if (const int64_t count = left_out.exchange(0); count > 0) {
    spdlog::warn("{} lines of the log were left out because its reader was behind", count);
  }
  if (event_format == LogFormat::kJson) {
    std::string members = absl::StrCat("\"message\":", JsonString(message));
    for (const LogField& field : fields) {
      absl::StrAppend(&members, ",\"", field.name, "\":", ValueOf(field, JsonString));
    }
    spdlog::default_logger()->clone(kEventLogger)->info("{}", members);
    return;
  }
  std::string line(message);
  for (const LogField& field : fields) absl::StrAppend(&line, " ", field.name, "=", ValueOf(field, TextOf));
  spdlog::info("{}", line);
}

}  // namespace hookline
