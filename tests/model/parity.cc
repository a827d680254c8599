#include "tests/model/parity.h"

#include <utility>

#include "gtest/gtest.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/weight_reader.h"

namespace hookline {

Reference ReadReference(const std::string& path) {
  Reference reference;
  auto file = ReadSafetensors(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return reference;
  WeightReader reader(*file);
  const auto read = [&](const std::string& name, at::ScalarType dtype) {
    absl::StatusOr<at::Tensor> values = reader.Read(name, dtype);
    EXPECT_TRUE(values.ok()) << values.status();
    return *std::move(values);
  };
  for (int j = 0; file->tensors.count("tokens_" + std::to_string(j)) != 0; ++j) {
    reference.tokens.push_back(read("tokens_" + std::to_string(j), at::kLong));
    const std::string positions = "positions_" + std::to_string(j);
    reference.positions.push_back(file->tensors.count(positions) == 0 ? at::Tensor() : read(positions, at::kLong));
  }
  for (const auto& [name, tensor] : file->tensors) {
    const size_t slash = name.rfind('/');
    if (slash == std::string::npos || name.rfind("logits", 0) == 0) continue;
    reference.activations[name.substr(0, slash)][std::stoi(name.substr(slash + 1))] = read(name, at::kFloat);
  }
  return reference;
}

std::vector<at::Tensor> RunModel(Model& model, const at::Tensor& token_ids, const std::vector<int>& hook_points,
                                 const std::vector<int64_t>& lengths) {
  std::vector<at::Tensor> values;
  const absl::Status status = model.Forward(token_ids.to(c10::Device(model.info().device)), lengths, hook_points,
                                            [&](int hook_point, const at::Tensor& value) {
                                              EXPECT_EQ(hook_point, hook_points[values.size()]);
                                              values.push_back(value.to(at::kFloat).cpu().clone());
                                            });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(values.size(), hook_points.size());
  return values;
}

std::vector<Difference> CompareWithReference(Model& model, const Reference& reference) {
  std::vector<Difference> differences;
  for (size_t j = 0; j < reference.tokens.size(); ++j) {
    std::map<int, std::string> wanted;
    for (const auto& [name, by_sequence] : reference.activations) {
      if (by_sequence.count(static_cast<int>(j)) == 0) continue;
      const int index = model.hook_points().Find(name);
      EXPECT_GE(index, 0) << "no hook point " << name;
      if (index >= 0) wanted[index] = name;
    }
    std::vector<int> hook_points;
    for (const auto& [index, name] : wanted) hook_points.push_back(index);
    const std::vector<at::Tensor> values = RunModel(model, reference.tokens[j].unsqueeze(0), hook_points);
    for (size_t i = 0; i < values.size(); ++i) {
      const std::string& name = wanted[hook_points[i]];
      const at::Tensor& expected = reference.activations.at(name).at(static_cast<int>(j));
      at::Tensor got = values[i];
      if (reference.positions[j].defined()) got = got.index_select(0, reference.positions[j]);
      EXPECT_EQ(got.sizes(), expected.sizes()) << name;
      const at::Tensor difference = (got - expected).to(at::kDouble);
      const at::Tensor size = expected.to(at::kDouble);
      differences.push_back({name + "/" + std::to_string(j),
                             difference.norm().item<double>() / size.norm().item<double>(),
                             (difference.norm(2, 1) / size.norm(2, 1)).max().item<double>()});
    }
  }
  return differences;
}

}  // namespace hookline
