// Shows the progress of a transfer on standard error: a bar on a terminal, else one line a second.
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

// Returns kBar if standard error is a terminal, else kLines.
ProgressStyle DefaultProgressStyle();

// The work that is done so far.
struct ProgressState {
  int64_t rows = 0;  // or whatever `unit` names
  std::optional<int64_t> total_rows;
  int64_t bytes = 0;
  // The part of `rows` and `bytes` that was done before the clock started; rates leave it out.
  int64_t rows_before = 0;
  int64_t bytes_before = 0;
  const char* unit = "rows";
};

// Returns one line of progress. `width` is the terminal's, for a bar; 0 means no bar.
std::string ProgressLine(const ProgressState& state, absl::Duration elapsed, int width);

// Thread-safe.
class Progress {
 public:
  // Starts the clock. `unit`, a string literal, names what is counted.
  explicit Progress(ProgressStyle style, const char* unit = "rows");
  // Ends the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Sets the most rows that can come; none if that is unknown.
  void SetTotal(std::optional<int64_t> total_rows);
  void Add(int64_t rows, int64_t bytes);
  // Sets how much was done before the clock started.
  void SetBefore(int64_t rows, int64_t bytes);
  // Sets how much is done now.
  void Set(int64_t rows, int64_t bytes);
  // Prints `text` on a line of its own, in every style.
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
