// Loads a model from disk.
//
//   ModelOptions options;
//   options.path = "checkpoints/d20";
//   auto model = LoadModel(options);
#ifndef HOOKLINE_SERVER_MODEL_LOAD_H_
#define HOOKLINE_SERVER_MODEL_LOAD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/model/load/memory_check.h"
#include "server/model/model.h"
#include "server/model/served_model.h"

namespace hookline {

// A dictionary to read beside a model.
struct DictionaryOptions {
  std::string name;
  std::string path;        // a directory of SAELens, sparsify or dictionary_learning
  std::string hook_point;  // the hook point whose rows it encodes; empty: the one that its files name
};

struct ModelOptions {
  std::string name;   // the name that requests use; empty: the last part of `path`
  std::string path;   // a nanochat or Hugging Face checkpoint directory, or a TorchScript file
  int64_t step = -1;  // the checkpoint of the directory to load; -1: the highest
  // cpu | cuda | cuda:N | auto (every GPU, or the CPU if there is none). A,B gives replicas and A+B stages
  // on such devices.
  std::string device = "auto";
  std::string dtype = "auto";  // float32 | bfloat16 | float16 | auto (float32 on the CPU, bfloat16 on CUDA)
  std::string
      window_pattern;  // nanochat: overrides the checkpoint's, letters S and L; empty: the checkpoint's, else "L"
  double logit_soft_cap = 0;        // nanochat's variants E and G, whose files lack it: 15 or 20; 0: unknown
  int64_t max_sequence_length = 0;  // tokens to allow if the checkpoint says fewer and the model can; 0: as it says
  bool evaluation = true;           // whether the unembedding is loaded, which captures do not need
  int64_t context_length = 0;       // TorchScript, whose files do not say: its most tokens; 0: unknown
  int64_t vocabulary_size = 0;      // TorchScript: its token ids are below this; 0: unknown
  std::vector<DictionaryOptions> dictionaries;
  absl::Duration torchscript_timeout = absl::Minutes(1);  // the limit of one of its forward passes
};

// Completes ModelInfo::no_logits if options.evaluation is false.
constexpr char kLoadedWithoutEvaluation[] = "was loaded without its unembedding (--no-evaluation)";

// Returns `options.name`, or the last part of the path, without the ending `.pt` of a file.
std::string ModelName(const ModelOptions& options);

// Returns the bytes that the weights of the model will take on each device, for all replicas together, in the types in
// which they are kept. Reads no weight. The weights of a TorchScript file cannot be derived from its code; it counts
// with the size of the file, or half of that if it is converted to a 2-byte type, which is the least that it can take.
// Errors: those of LoadModel.
absl::StatusOr<std::vector<MemoryNeed>> CountWeights(const ModelOptions& options);

// Reads the checkpoint and copies its weights to the device; they are there when this returns. If there are several
// replicas, loads only the first. Errors: NOT_FOUND (no such path or step), INVALID_ARGUMENT (an option's value,
// named), FAILED_PRECONDITION (a checkpoint that is corrupt, incomplete or of an architecture that is not supported;
// the message names file and key), RESOURCE_EXHAUSTED (memory, with both numbers if they are known beforehand).
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const ModelOptions& options);

// Loads every replica, with an executor for each stage. Replicas on the CPU share one copy of the weights, except those
// of TorchScript models. Errors: those of LoadModel, and FAILED_PRECONDITION if the checkpoint was changed meanwhile.
absl::StatusOr<ServedModel> LoadServedModel(const ModelOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_H_
