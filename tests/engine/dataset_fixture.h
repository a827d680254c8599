// An engine with a dataset on the disk.
#ifndef HOOKLINE_TESTS_ENGINE_DATASET_FIXTURE_H_
#define HOOKLINE_TESTS_ENGINE_DATASET_FIXTURE_H_

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace hookline {

// Writes the sequences as a file of uint16 ids.
inline void WriteTokens(const std::string& path, const std::vector<std::vector<uint32_t>>& sequences) {
  std::ofstream out(path, std::ios::binary);
  for (const auto& ids : sequences) {
    for (uint32_t id : ids) {
      const uint16_t stored = static_cast<uint16_t>(id);
      out.write(reinterpret_cast<const char*>(&stored), sizeof(stored));
    }
  }
}

// Opens the file as the dataset "corpus".
inline std::vector<std::unique_ptr<const Dataset>> OpenCorpus(const std::string& path) {
  auto dataset = Dataset::Open("corpus", path + ":uint16");
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  std::vector<std::unique_ptr<const Dataset>> datasets;
  if (dataset.ok()) datasets.push_back(*std::move(dataset));
  return datasets;
}

// A fixture with the dataset "corpus" of kSequences sequences of kLength tokens.
class DatasetTest : public EngineTest {
 protected:
  static constexpr int kLength = 20;
  static constexpr int kSequences = 30;

  DatasetTest() : path_("/tmp/hookline-engine-test-" + std::to_string(getpid()) + ".bin") {
    all_ = Sequences(std::vector<int>(kSequences, kLength));
    WriteAll();
  }
  ~DatasetTest() override { std::remove(path_.c_str()); }

  void WriteAll() const { WriteTokens(path_, all_); }

  void CreateWithDataset() { Create(OpenCorpus(path_)); }

  const std::string path_;
  std::vector<std::vector<uint32_t>> all_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_DATASET_FIXTURE_H_
