#include "client/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace hookline::cli {
namespace {

constexpr int kBarWidth = 30;

}  // namespace

std::string Count(double number) {
  for (const char* unit : {"", " k", " M", " G"}) {
    if (number < 1000) return absl::StrFormat(*unit == '\0' ? "%.0f%s" : "%.3g%s", number, unit);
    number /= 1000;
  }
  return absl::StrFormat("%.3g T", number);
}

std::string Bytes(double bytes) { return absl::StrCat(Count(bytes), bytes < 1000 ? " B" : "B"); }

Progress::Progress(std::optional<int64_t> total_rows)
    : total_rows_(total_rows), terminal_(isatty(STDERR_FILENO) == 1), begin_(absl::Now()), shown_(begin_) {}

Progress::~Progress() {
  if (bar_there_) std::fputc('\n', stderr);
}

void Progress::Update(int64_t rows, int64_t bytes) {
  rows_ = rows;
  bytes_ = bytes;
  const absl::Time now = absl::Now();
  if (now - shown_ >= (terminal_ ? absl::Milliseconds(100) : absl::Seconds(1))) Show(now);
}

void Progress::Finish() { Show(absl::Now()); }

void Progress::Show(absl::Time now) {
  shown_ = now;
  const double seconds = std::max(1e-9, absl::ToDoubleSeconds(now - begin_));
  const double rate = static_cast<double>(rows_) / seconds;
  std::string line = absl::StrCat(Count(static_cast<double>(rows_)), " rows");
  double share = 0;
  if (total_rows_.has_value() && *total_rows_ > 0) {
    share = std::min(1.0, static_cast<double>(rows_) / static_cast<double>(*total_rows_));
    absl::StrAppend(&line, " of ", Count(static_cast<double>(*total_rows_)));
  }
  absl::StrAppend(&line, ", ", Count(rate), " rows/s, ", Bytes(static_cast<double>(bytes_) / seconds), "/s");
  if (share > 0 && share < 1) {
    const int64_t left = static_cast<int64_t>(seconds * (1 - share) / share) + 1;
    absl::StrAppend(&line, ", ", absl::FormatDuration(absl::Seconds(left)), " left");
  }
  if (!terminal_) {
    absl::FPrintF(stderr, "%s\n", line);
    return;
  }
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string bar = total_rows_.has_value()
                              ? absl::StrCat("[", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), "] ")
                              : "";
  absl::FPrintF(stderr, "\r\033[K%s%s", bar, line);
  std::fflush(stderr);
  bar_there_ = true;
}

}  // namespace hookline::cli
