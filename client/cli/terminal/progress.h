// Shows on standard error how far a transfer is: a bar on a terminal, else one line a second.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_PROGRESS_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_PROGRESS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/steady.h"

namespace hookline::cli {

enum class ProgressStyle { kNone, kLines, kBar };

// kBar if standard error is a terminal, else kLines.
ProgressStyle DefaultProgressStyle();

// The work that was done in some time.
struct ProgressState {
  int64_t rows = 0;  // or what else `unit` says
  std::optional<int64_t> total_rows;
  int64_t bytes = 0;
  // Rows and bytes that were there before the time began.
  int64_t rows_before = 0;
  int64_t bytes_before = 0;
  const char* unit = "rows";
};

// One line of progress. `width` is the terminal's, for a bar; 0: no bar.
std::string ProgressLine(const ProgressState& state, absl::Duration elapsed, int width);

// Thread-safe.
class Progress {
 public:
  // Begins to count time. `unit`, a literal, is what is counted.
  explicit Progress(ProgressStyle style, const char* unit = "rows");
  // Ends the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // The most rows that there will be; none where nobody knows.
  void SetTotal(std::optional<int64_t> total_rows);
  void Add(int64_t rows, int64_t bytes);
  // Says how much was there before this began.
  void SetBefore(int64_t rows, int64_t bytes);
  // Says how much there is now.
  void Set(int64_t rows, int64_t bytes);
  // Says something beside, in a line of its own, whatever the style.
  void Note(const std::string& text);

  absl::Duration elapsed() const;

 private:
  void Run();
  void Draw() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ProgressStyle style_;
  const absl::Time start_;
  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;
  ProgressState state_ ABSL_GUARDED_BY(mutex_);
  bool drawn_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_PROGRESS_H_
