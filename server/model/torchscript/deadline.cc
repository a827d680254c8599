#include "server/model/torchscript/deadline.h"

#include <torch/csrc/jit/runtime/custom_operator.h>

#include <stdexcept>
#include <string>

#include "absl/time/clock.h"

namespace hookline {
namespace {

namespace jit = torch::jit;

// The number of operators between two checks of the clock, each of which takes as long as a cheap operator.
constexpr int kOperatorsBetweenChecks = 64;

constexpr char kCheck[] = "hookline::check_deadline";

thread_local Deadline* current = nullptr;

}  // namespace

Deadline::Deadline(absl::Time end) : end_(end) { current = this; }

Deadline::~Deadline() { current = nullptr; }

void CheckDeadline() {
  if (current == nullptr || absl::Now() < current->end_) return;
  current->passed_ = true;
  throw std::runtime_error("out of time");
}

namespace {

// CONSERVATIVE keeps the operator although nothing uses its result. This is how LibTorch registers operators.
// NOLINTNEXTLINE(bugprone-throwing-static-initialization)
const jit::RegisterOperators registered({jit::Operator(
    std::string(kCheck) + "() -> ()", [](jit::Stack& /*stack*/) { CheckDeadline(); },
    c10::AliasAnalysisKind::CONSERVATIVE)});

}  // namespace

void AddDeadlineChecks(jit::Block* block) {
  const c10::Symbol check = c10::Symbol::fromQualString(kCheck);
  const auto insert_before = [&](jit::Node* node) {
    block->owningGraph()->create(check, /*inputs=*/{}, /*num_outputs=*/0)->insertBefore(node);
  };
  insert_before(*block->nodes().begin());
  int operators = 0;
  for (jit::Node* node = *block->nodes().begin(); node != block->return_node(); node = node->next()) {
    for (jit::Block* inner : node->blocks()) AddDeadlineChecks(inner);
    if (++operators % kOperatorsBetweenChecks == 0) insert_before(node);
  }
}

}  // namespace hookline
