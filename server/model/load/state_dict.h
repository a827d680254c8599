// The parameters of a checkpoint by name, which the readers return and the families take.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_STATE_DICT_H_
#define HOOKLINE_SERVER_MODEL_LOAD_STATE_DICT_H_

#include <string>

#include "absl/container/btree_map.h"
#include "server/model/load/stored_tensor.h"

namespace hookline {

struct StateDict {
  // The tensors as the files describe them, checked against the files' sizes; WeightReader reads the values.
  absl::btree_map<std::string, StoredTensor> tensors;
  // The file, or for several the folder, for messages.
  std::string path;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_STATE_DICT_H_
