// Returns the values of a checkpoint's tensor, for tests.
#ifndef HOOKLINE_TESTS_CHECKPOINT_VALUES_OF_H_
#define HOOKLINE_TESTS_CHECKPOINT_VALUES_OF_H_

#include <ATen/ATen.h>

#include <string>

#include "gtest/gtest.h"
#include "server/model/load/weight_reader.h"

namespace hookline {

inline at::Tensor ValuesOf(const StateDict& weights, const std::string& name, at::ScalarType dtype) {
  absl::StatusOr<at::Tensor> values = WeightReader(weights).Read(name, dtype);
  EXPECT_TRUE(values.ok()) << values.status();
  return values.ok() ? *std::move(values) : at::zeros({1});
}

// Returns the values in the dtype in which they are stored.
inline at::Tensor ValuesOf(const StateDict& weights, const std::string& name) {
  return ValuesOf(weights, name, weights.tensors.at(name).scalar_type());
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_CHECKPOINT_VALUES_OF_H_
