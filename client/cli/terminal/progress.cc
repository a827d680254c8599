#include "client/cli/terminal/progress.h"

#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/terminal/text_format.h"
#include "server/base/escape.h"

namespace hookline::cli {
namespace {

constexpr absl::Duration kBarInterval = absl::Milliseconds(100);
constexpr absl::Duration kLineInterval = absl::Seconds(1);
// Used if the terminal does not report its width.
constexpr int kDefaultWidth = 80;

int TerminalWidth() {
  winsize size;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kDefaultWidth;
  return size.ws_col;
}

}  // namespace

ProgressStyle DefaultProgressStyle() { return isatty(STDERR_FILENO) ? ProgressStyle::kBar : ProgressStyle::kLines; }

std::string ProgressLine(const ProgressState& state, absl::Duration elapsed, int width) {
  const double seconds = std::max(absl::ToDoubleSeconds(elapsed), 1e-3);
  const double rate = static_cast<double>(state.rows - state.rows_before) / seconds;
  std::string numbers = WithCommas(state.rows);
  if (state.total_rows.has_value()) absl::StrAppend(&numbers, "/", WithCommas(*state.total_rows));
  absl::StrAppend(&numbers, " ", state.unit, "  ", ShortNumber(rate), state.unit, "/s  ",
                  ShortNumber(static_cast<double>(state.bytes - state.bytes_before) / seconds), "B/s");
  if (!state.total_rows.has_value() || *state.total_rows < 1) return numbers;
  const double done = std::min(1.0, static_cast<double>(state.rows) / static_cast<double>(*state.total_rows));
  if (rate > 0) {
    absl::StrAppend(&numbers, "  ", ShortTime(static_cast<double>(*state.total_rows - state.rows) / rate), " left");
  }
  std::string bar;
  // The other 9 columns are `100% [`, `] ` and a free one at the end.
  const int room = width - static_cast<int>(numbers.size()) - 9;
  if (room >= 5) {
    const int filled = static_cast<int>(done * room);
    bar = absl::StrCat(std::string(filled, '='), filled < room ? ">" : "",
                       std::string(std::max(0, room - filled - 1), ' '));
    bar = absl::StrCat("[", bar, "] ");
  }
  return absl::StrFormat("%3d%% %s%s", static_cast<int>(done * 100), bar, numbers);
}

Progress::Progress(ProgressStyle style, const char* unit) : style_(style), start_(SteadyNow()) {
  state_.unit = unit;
  if (style_ != ProgressStyle::kNone) thread_ = std::thread(&Progress::Run, this);
}

Progress::~Progress() {
  if (style_ == ProgressStyle::kNone) return;
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void Progress::Run() {
  absl::MutexLock lock(&mutex_);
  const absl::Duration interval = style_ == ProgressStyle::kBar ? kBarInterval : kLineInterval;
  auto ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_; };
  while (!changed_.WaitFor(mutex_, interval, ended)) Draw();
  if (style_ == ProgressStyle::kBar || state_.rows > 0) Draw();
  if (style_ == ProgressStyle::kBar && drawn_) fputs("\n", stderr);
}

void Progress::Draw() {
  if (state_.rows == 0 && !state_.total_rows.has_value()) return;  // nothing was granted yet
  drawn_ = true;
  const bool bar = style_ == ProgressStyle::kBar;
  const std::string line = ProgressLine(state_, elapsed(), bar ? TerminalWidth() : 0);
  // ESC [ K clears the rest of a longer previous line.
  fputs(bar ? absl::StrCat("\r", line, "\x1b[K").c_str() : absl::StrCat(line, "\n").c_str(), stderr);
}

void Progress::SetTotal(std::optional<int64_t> total_rows) {
  absl::MutexLock lock(&mutex_);
  state_.total_rows = total_rows;
}

void Progress::Add(int64_t rows, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  state_.rows += rows;
  state_.bytes += bytes;
}

void Progress::SetBefore(int64_t rows, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  state_.rows_before = rows;
  state_.bytes_before = bytes;
}

void Progress::Set(int64_t rows, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  state_.rows = rows;
  state_.bytes = bytes;
}

void Progress::Note(const std::string& text) {
  absl::MutexLock lock(&mutex_);
  fputs(absl::StrCat(drawn_ && style_ == ProgressStyle::kBar ? "\r\x1b[K" : "", Escaped(text), "\n").c_str(), stderr);
}

absl::Duration Progress::elapsed() const { return SteadyNow() - start_; }

}  // namespace hookline::cli
