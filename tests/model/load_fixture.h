// Loads the model under tests/fixtures/`path`, named `name` or, if that is empty, as its folder, to `device`.
#ifndef HOOKLINE_TESTS_MODEL_LOAD_FIXTURE_H_
#define HOOKLINE_TESTS_MODEL_LOAD_FIXTURE_H_

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "server/model/load.h"

namespace hookline {

inline std::unique_ptr<Model> LoadFixture(const std::string& path, const std::string& device,
                                          const std::string& dtype = "float32", const std::string& name = "") {
  ModelOptions options;
  options.name = name;
  options.path = std::string(HOOKLINE_FIXTURES) + "/" + path;
  options.device = device;
  options.dtype = dtype;
  auto model = LoadModel(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_MODEL_LOAD_FIXTURE_H_
