// Ends runs of TorchScript code that take too long: loops that never end, above all.
//
// Used inside this folder only: functions here throw what LibTorch throws.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_

#include <torch/csrc/jit/ir/ir.h>

#include "absl/time/time.h"

namespace hookline {

// While it lives, code of this thread that AddDeadlineChecks has changed throws once `end` has passed. At most one in a
// thread.
class Deadline {
 public:
  explicit Deadline(absl::Time end);
  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  // Returns whether it has ended code.
  bool passed() const { return passed_; }

 private:
  friend void CheckDeadline();

  const absl::Time end_;
  bool passed_ = false;
};

// Lets a graph with this block look at the clock in every pass of a loop and after every few operators, so that only a
// single operator can take longer.
void AddDeadlineChecks(torch::jit::Block* block);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_
