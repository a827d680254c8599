// A model that can be described, but not run.
#ifndef HOOKLINE_TESTS_SERVICE_DESCRIBED_MODEL_H_
#define HOOKLINE_TESTS_SERVICE_DESCRIBED_MODEL_H_

#include <cstdint>
#include <memory>

#include "server/model/model.h"

namespace hookline {

// Returns a model named `fake`, with the hook points `a` and `b` of `width` values.
std::unique_ptr<Model> NewDescribedModel(int64_t width);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_DESCRIBED_MODEL_H_
