// Reads the state dicts that torch.save writes: a zip archive of stored (not compressed) entries, among them a pickle
// of an OrderedDict of tensors and one entry per storage; or, as before PyTorch 1.6, the pickle and the storages one
// after another, without checksums.
#ifndef HOOKLINE_SERVER_MODEL_LOAD_TORCH_CHECKPOINT_H_
#define HOOKLINE_SERVER_MODEL_LOAD_TORCH_CHECKPOINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/model/load/state_dict.h"

namespace hookline {

// Reads the descriptions of the tensors in `path` and checks them. The tensors' own bytes are checked against the
// entries' CRC-32 when they are read. Nothing in the file is executed: the pickle can build tensors, storages,
// OrderedDicts, dicts, lists, tuples and primitive values; everything else is refused by name. The prefixes
// `_orig_mod.` and `module.` are removed from names. Errors: those of InputFile; FAILED_PRECONDITION naming the file
// and what is wrong with it.
absl::StatusOr<StateDict> ReadTorchCheckpoint(const std::string& path);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_TORCH_CHECKPOINT_H_
