// The input is a config.json, which is put beside the weights of a fixture of its model type.
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "nlohmann/json.hpp"
#include "server/model/load.h"
#include "server/model/model.h"
#include "tests/fuzz/input.h"

namespace {

namespace fs = std::filesystem;

// Returns the fixture whose weights may fit the configuration.
fs::path FixtureFor(absl::string_view config) {
  const fs::path families = fs::path(HOOKLINE_FIXTURES) / "families";
  const nlohmann::json parsed = nlohmann::json::parse(config.begin(), config.end(), nullptr, false);
  if (parsed.is_object() && parsed.contains("model_type") && parsed["model_type"].is_string()) {
    const std::string type = parsed["model_type"];
    for (const fs::directory_entry& fixture : fs::directory_iterator(families)) {
      if (!type.empty() && absl::StartsWith(fixture.path().filename().string(), type)) return fixture.path();
    }
  }
  return families / "gpt2";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fs::path folder = hookline::MakeDirectory();
  for (const fs::directory_entry& file : fs::directory_iterator(folder)) fs::remove(file);
  const absl::string_view config = hookline::AsText(data, bytes);
  std::ofstream(folder / "config.json", std::ios::binary).write(config.data(), static_cast<std::streamsize>(bytes));
  for (const fs::directory_entry& file : fs::directory_iterator(FixtureFor(config))) {
    const std::string name = file.path().filename();
    if (absl::StartsWith(name, "model")) fs::create_symlink(file, folder / name);
  }
  hookline::ModelOptions options;
  options.name = "model";
  options.path = folder;
  options.device = "cpu";
  hookline::CheckMessage(hookline::LoadModel(options).status());
  return 0;
}
