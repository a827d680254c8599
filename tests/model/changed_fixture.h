// Checkpoints that differ from a fixture in what a test changes.
#ifndef HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_
#define HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "server/model/load.h"
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

  // The names and shapes in model.safetensors; its data stays, and `more` follows it.
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

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    ModelOptions options;
    options.path = root_;
    options.device = "cpu";
    return LoadModel(options);
  }
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_MODEL_CHANGED_FIXTURE_H_
