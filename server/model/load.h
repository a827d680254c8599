// Loads a model from what is on disk.
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
  std::string hook_point;  // whose rows it encodes; empty: as its files say
};

struct ModelOptions {
  std::string name;   // by which requests choose it; empty: the last part of `path`
  std::string path;   // a nanochat or Hugging Face checkpoint directory, or a TorchScript file
  int64_t step = -1;  // of the directory's checkpoints the one to load; -1: the highest
  // cpu | cuda | cuda:N | auto (every GPU, or the CPU where there is none); replicas A,B and stages A+B of such
  // devices.
  std::string device = "auto";
  std::string dtype = "auto";  // float32 | bfloat16 | float16 | auto (float32 on the CPU, bfloat16 on CUDA)
  std::string
      window_pattern;  // nanochat: overrides the checkpoint's, letters S and L; empty: the checkpoint's, else "L"
  double logit_soft_cap = 0;        // nanochat's variants E and G, whose files do not tell: 15 or 20; 0: unknown
  int64_t max_sequence_length = 0;  // tokens to allow where the checkpoint says fewer and the model can; 0: as it says
  bool evaluation = true;           // whether the unembedding is loaded, which captures do without
  int64_t context_length = 0;       // TorchScript, whose files cannot tell: tokens that it takes; 0: unknown
  int64_t vocabulary_size = 0;      // TorchScript: its token ids are below this; 0: unknown
  std::vector<DictionaryOptions> dictionaries;
  absl::Duration torchscript_timeout = absl::Minutes(1);  // what one of its forward passes may take
};

// Completes ModelInfo::no_logits where options.evaluation is false.
constexpr char kLoadedWithoutEvaluation[] = "was loaded without its unembedding (--no-evaluation)";

// `options.name`, or the last part of the path without a file's ending `.pt`.
std::string ModelName(const ModelOptions& options);

// Returns what the weights of the model will take on each device, all replicas together: of what is loaded, in the
// types in which it is kept. No weight is read. A TorchScript file, whose weights cannot be told from its code, counts
// with its size, halved where it becomes a 2-byte type: no less than that can suffice. Errors as LoadModel.
absl::StatusOr<std::vector<MemoryNeed>> CountWeights(const ModelOptions& options);

// Reads the checkpoint and copies its weights to the device; when it returns, they are there. Of several replicas only
// the first is loaded. Errors: NOT_FOUND (no such path or step), INVALID_ARGUMENT (an option's value, named),
// FAILED_PRECONDITION (a checkpoint that is corrupt, incomplete or of an architecture we do not run: the message names
// file and key), RESOURCE_EXHAUSTED (memory, with both numbers where they are known before).
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const ModelOptions& options);

// Loads every replica, with an executor for each stage. Replicas on the CPU share one copy of the weights, except those
// of TorchScript models. Errors as LoadModel, and FAILED_PRECONDITION: the checkpoint was changed meanwhile.
absl::StatusOr<ServedModel> LoadServedModel(const ModelOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_H_
