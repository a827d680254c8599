// Ends TorchScript code that runs for too long, above all endless loops.
//
// Only this folder uses it: the functions here throw LibTorch's exceptions.
#ifndef HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_
#define HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_

#include <torch/csrc/jit/ir/ir.h>

#include "absl/time/time.h"

namespace hookline {

// While this object exists, code of this thread that AddDeadlineChecks has changed throws once `end` has passed. A
// thread has at most one.
class Deadline {
 public:
  explicit Deadline(absl::Time end);
  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  // Returns whether code was ended by this deadline.
  bool passed() const { return passed_; }

 private:
  friend void CheckDeadline();

  const absl::Time end_;
  bool passed_ = false;
};

// Makes a graph with this block check the clock in every iteration of a loop and after every few operators, so that
// only a single operator can take longer.
void AddDeadlineChecks(torch::jit::Block* block);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TORCHSCRIPT_DEADLINE_H_
