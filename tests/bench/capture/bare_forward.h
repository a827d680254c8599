// Runs a model's forward pass by itself, to measure what the server adds.
#ifndef HOOKLINE_TESTS_BENCH_CAPTURE_BARE_FORWARD_H_
#define HOOKLINE_TESTS_BENCH_CAPTURE_BARE_FORWARD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "server/model/model.h"

namespace hookline {

// Runs `sequences` sequences of `length` tokens, `batch` at a time, up to the hook point, and drops the values.
absl::Status RunBareForward(Model& model, int hook_point, int64_t sequences, int64_t length, int64_t batch);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_BENCH_CAPTURE_BARE_FORWARD_H_
