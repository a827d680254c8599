// How far a long command is: a bar on a terminal, a line a second elsewhere. On standard error.
#ifndef HOOKLINE_CLIENT_CLI_PROGRESS_H_
#define HOOKLINE_CLIENT_CLI_PROGRESS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace hookline::cli {

// "12.3 M", "4.56 GB".
std::string Count(double number);
std::string Bytes(double bytes);

class Progress {
 public:
  // `total_rows`: how many are expected, where that is known.
  explicit Progress(std::optional<int64_t> total_rows);
  ~Progress();

  // What has come so far, all of it. Shows it now and then.
  void Update(int64_t rows, int64_t bytes);
  // Shows the end of it.
  void Finish();

 private:
  void Show(absl::Time now);

  const std::optional<int64_t> total_rows_;
  const bool terminal_;
  const absl::Time begin_;
  absl::Time shown_;
  int64_t rows_ = 0;
  int64_t bytes_ = 0;
  bool bar_there_ = false;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_PROGRESS_H_
