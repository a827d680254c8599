// Families' fixtures with changes, for tests of models that are refused and of forms that mean the same.
#ifndef HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_
#define HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load.h"
#include "tests/model/parity.h"
#include "tests/model/scratch_folder.h"

namespace hookline {

// A copy of a fixture whose config.json and safetensors header a test can change.
class ChangedFixtureTest : public ScratchFolderTest {
 protected:
  void Use(const std::string& fixture) {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(HOOKLINE_FIXTURES) / "families" / fixture)) {
      if (entry.path().filename() != "reference.safetensors") std::filesystem::copy(entry.path(), root_);
    }
  }

  void ChangeConfig(const std::function<void(nlohmann::json& config)>& change) {
    nlohmann::json config = nlohmann::json::parse(std::ifstream(root_ / "config.json"));
    change(config);
    std::ofstream(root_ / "config.json") << config;
  }

  // Changes the names and shapes in model.safetensors. Its data stays, and `more` follows it.
  void ChangeHeader(const std::function<void(nlohmann::json& header)>& change, const std::string& more = "") {
    std::ifstream in(root_ / "model.safetensors", std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
    change(header);
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t new_length = text.size();
    std::ofstream out(root_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&new_length), sizeof(new_length));
    out << text << bytes.substr(8 + length) << more;
  }

  absl::StatusOr<std::unique_ptr<Model>> Load(int64_t max_sequence_length = 0) {
    ModelOptions options;
    options.path = root_;
    options.device = "cpu";
    options.max_sequence_length = max_sequence_length;
    return LoadModel(options);
  }

  // Returns the value of the last hook point for 100 tokens.
  at::Tensor LastValue() {
    auto model = Load();
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return at::zeros({1});
    return RunModel(**model, at::arange(100, at::kLong).unsqueeze(0), {(*model)->hook_points().size() - 1})[0];
  }

  // Returns the error about the fixture after a change of its config.json.
  std::string Refusal(const std::string& fixture, const std::function<void(nlohmann::json& config)>& change) {
    Use(fixture);
    ChangeConfig(change);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << fixture << ": " << status;
    EXPECT_THAT(status.message(), ::testing::HasSubstr("config.json: ")) << fixture;
    return std::string(status.message());
  }

  std::string RefusalOf(const std::string& fixture, const std::string& key, const nlohmann::json& value) {
    return Refusal(fixture, [&](nlohmann::json& config) { config[key] = value; });
  }

  std::string RefusalOfHeader(const std::string& fixture, const std::function<void(nlohmann::json& header)>& change) {
    Use(fixture);
    ChangeHeader(change);
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << fixture << ": " << status;
    return std::string(status.message());
  }
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_
