// A tensor of a state dict, as its pickle describes it.
#ifndef HOOKLINE_SERVER_FORMATS_PICKLED_TENSOR_H_
#define HOOKLINE_SERVER_FORMATS_PICKLED_TENSOR_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hookline {

// The description is not yet checked against the tensor's storage.
struct PickledTensor {
  std::string name;
  std::string storage_type;  // "FloatStorage"
  std::string storage_key;   // the archive's entry `data/KEY`
  int64_t storage_values = 0;
  int64_t offset = 0;  // in values, like the strides
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_PICKLED_TENSOR_H_
