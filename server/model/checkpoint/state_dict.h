// The parameters of a checkpoint, by name: what the readers give and the families take.
#ifndef HOOKLINE_SERVER_MODEL_CHECKPOINT_STATE_DICT_H_
#define HOOKLINE_SERVER_MODEL_CHECKPOINT_STATE_DICT_H_

#include <ATen/ATen.h>

#include <string>

#include "absl/container/btree_map.h"
#include "absl/strings/string_view.h"

namespace hookline {

struct StateDict {
  // Tensors on the CPU with the dtype, shape and strides that the file gives. They are views of the mapped file, which
  // they keep alive; nobody may write to them.
  absl::btree_map<std::string, at::Tensor> tensors;
  // The file, or for several the folder, for messages.
  std::string path;
};

// 32 hexadecimal digits: XXH3-128 over each tensor's name, dtype, shape and bytes (row-major) in the order of names,
// and over `configuration`.
std::string WeightsFingerprint(const StateDict& weights, absl::string_view configuration);

// Bytes of all tensors once those of floating types have `dtype`.
int64_t WeightBytes(const StateDict& weights, at::ScalarType dtype);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CHECKPOINT_STATE_DICT_H_
