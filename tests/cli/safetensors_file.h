// Reads the program's files strictly by the definition of their format.
#ifndef HOOKLINE_TESTS_CLI_SAFETENSORS_FILE_H_
#define HOOKLINE_TESTS_CLI_SAFETENSORS_FILE_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace hookline::cli {

struct SafetensorsFile {
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;

    template <typename T>
    std::vector<T> As() const {
      std::vector<T> values(bytes.size() / sizeof(T));
      std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
      return values;
    }
  };
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
};

// Fails the test if the file is not in the format, or its tensors leave gaps.
SafetensorsFile ReadSafetensors(const std::string& path);

}  // namespace hookline::cli

#endif  // HOOKLINE_TESTS_CLI_SAFETENSORS_FILE_H_
