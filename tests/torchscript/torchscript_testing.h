// Helpers of the TorchScript tests: they write modules, load models and compare values.
#ifndef HOOKLINE_TESTS_TORCHSCRIPT_TORCHSCRIPT_TESTING_H_
#define HOOKLINE_TESTS_TORCHSCRIPT_TORCHSCRIPT_TESTING_H_

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model/torchscript/torchscript_model.h"

namespace hookline {

inline std::string Fixture(const std::string& name) {
  return absl::StrCat(HOOKLINE_FIXTURES, "/torchscript/", name, "/model.pt");
}

// A folder for one test, which is removed with this object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    const ::testing::TestInfo* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() / absl::StrCat("hookline-", test->name(), "-", ::getpid());
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  std::string File(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Returns the float32 and int32 tensors of a safetensors file that is known to be good.
inline std::map<std::string, at::Tensor> ReadReferenceFile(const std::string& path) {
  const std::string bytes = ReadFile(path);
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto shape = entry.at("shape").get<std::vector<int64_t>>();
    const auto dtype = entry.at("dtype") == "F32" ? at::kFloat : at::kInt;
    const char* data = bytes.data() + 8 + header_size + entry.at("data_offsets")[0].get<uint64_t>();
    tensors[name] = at::from_blob(const_cast<char*>(data), shape, at::TensorOptions(dtype)).clone();
  }
  return tensors;
}

inline std::unique_ptr<Model> Load(const std::string& path, TorchScriptOptions options = {}) {
  options.path = path;
  auto model = LoadTorchScript(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

// Returns token ids, (batch, positions), of sequences of one length.
inline at::Tensor Ids(std::vector<std::vector<int64_t>> sequences) {
  std::vector<at::Tensor> rows;
  for (const auto& sequence : sequences) rows.push_back(at::tensor(sequence, at::TensorOptions(at::kLong)));
  return at::stack(rows);
}

// Returns the values of the named hook points, by name.
inline absl::StatusOr<std::map<std::string, at::Tensor>> Values(Model& model, const at::Tensor& ids,
                                                                const std::vector<std::string>& names) {
  std::vector<int> indices;
  for (const std::string& name : names) {
    const int index = model.hook_points().Find(name);
    if (index < 0) return absl::NotFoundError(name);
    indices.push_back(index);
  }
  std::sort(indices.begin(), indices.end());
  std::map<std::string, at::Tensor> values;
  absl::Status status = model.Forward(ids, /*lengths=*/{}, indices, [&](int index, const at::Tensor& value) {
    values[model.hook_points()[index].name] = value;
  });
  if (!status.ok()) return status;
  return values;
}

inline std::vector<std::string> Names(const Model& model) {
  std::vector<std::string> names;
  for (const HookPoint& point : model.hook_points().all()) names.push_back(point.name);
  return names;
}

inline double RelativeError(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) return 1e9;
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

// Returns the error of a request for `name`, or "accepted".
inline std::string Refusal(const Model& model, const std::string& name) {
  auto resolved = model.hook_points().Resolve({name}, 100);
  return resolved.ok() ? "accepted" : std::string(resolved.status().message());
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_TORCHSCRIPT_TORCHSCRIPT_TESTING_H_
