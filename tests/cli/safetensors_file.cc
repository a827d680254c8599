#include "tests/cli/safetensors_file.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli/program.h"

namespace hookline::cli {

SafetensorsFile ReadSafetensors(const std::string& path) {
  SafetensorsFile file;
  const std::string contents = ReadFile(path);
  uint64_t header_bytes = 0;
  EXPECT_GT(contents.size(), sizeof(header_bytes)) << path;
  std::memcpy(&header_bytes, contents.data(), sizeof(header_bytes));
  EXPECT_LE(header_bytes, contents.size() - 8) << path;
  const nlohmann::json header = nlohmann::json::parse(contents.substr(8, header_bytes));
  file.metadata = header.at("__metadata__").get<std::map<std::string, std::string>>();
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    SafetensorsFile::Tensor tensor;
    tensor.dtype = entry.at("dtype");
    tensor.shape = entry.at("shape").get<std::vector<int64_t>>();
    const uint64_t begin = entry.at("data_offsets")[0];
    const uint64_t end = entry.at("data_offsets")[1];
    ranges.emplace_back(begin, end);
    tensor.bytes = contents.substr(8 + header_bytes + begin, end - begin);
    file.tensors[name] = std::move(tensor);
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, at) << path;
    at = end;
  }
  EXPECT_EQ(8 + header_bytes + at, contents.size()) << path;
  return file;
}

}  // namespace hookline::cli
