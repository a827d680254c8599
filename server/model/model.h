// A model: weights on a device and the forward pass over them. This header is free of LibTorch's, so that every layer
// above can include it.
#ifndef HOOKLINE_SERVER_MODEL_MODEL_H_
#define HOOKLINE_SERVER_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/base/dtype.h"
#include "server/model/dictionary/dictionary_info.h"
#include "server/model/hook_points.h"

namespace at {
class Tensor;
}

namespace hookline {

class PassEditor;

// Facts about a model, its hook points aside.
struct ModelInfo {
  std::string name;          // by which requests choose it
  std::string architecture;  // "nanochat"
  std::string variant;       // "I"
  std::string details;       // what was found or set that changes activations, one line for people
  std::string warning;       // what the server's operator should know, one line; empty: nothing
  int layers = 0;
  int64_t width = 0;  // of the residual stream
  int heads = 0;
  int key_value_heads = 0;
  int64_t context_length = 0;   // tokens; longer sequences are refused
  int64_t vocabulary_size = 0;  // token ids are below it
  Dtype dtype = Dtype::kFloat32;
  std::string device;       // "cpu", "cuda:0"
  std::string fingerprint;  // 32 hexadecimal digits, see proto Model.fingerprint
  int64_t parameters = 0;
  // True if sequences of different lengths may share a batch, padded on the right.
  bool mixes_lengths = true;
  // The reason why the model computes no logits, which completes the sentence that begins with it; empty: it does.
  std::string no_logits = "is not a decoder, so its logits are not known";
};

// A sparse dictionary beside the model, dictionary/dictionary.h.
class Dictionary;

// A dictionary at the hook point whose rows it encodes. What it computes of them are hook points too.
struct AttachedDictionary {
  DictionaryInfo info;
  std::shared_ptr<const Dictionary> dictionary;
  int hook_point = 0;
  int output_point = 0;  // whose rows it reconstructs: the same, or for a transcoder one that is computed later
  int first_point = 0;   // of the dictionary's own hook points, which follow each other
};

// Thread-compatible: one thread at a time calls Forward (the model's executor); the const members are safe from any.
class Model {
 public:
  // Receives the value of one hook point during Forward: `(batch * positions, width)` on the model's device in its
  // dtype, possibly a view that is not contiguous. The tensor may be kept; nothing writes to it later.
  using Tap = absl::FunctionRef<void(int hook_point, const at::Tensor& value)>;

  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }
  const HookPoints& hook_points() const { return hook_points_; }
  const std::vector<AttachedDictionary>& dictionaries() const { return dictionaries_; }

  // Adds a dictionary at a hook point, and its own hook points at the end of the list. `output_point`: as
  // AttachedDictionary has it. Call it before the model is shared. FAILED_PRECONDITION: the widths differ, the output
  // is computed before the input, or the dictionary's name is taken.
  absl::Status Attach(std::shared_ptr<const Dictionary> dictionary, int hook_point, int output_point);

  // Runs the forward pass over `token_ids` (batch, positions), int64, on the model's device, every id below
  // vocabulary_size and positions <= context_length, of which sequence i has lengths[i], the rest being padding on the
  // right (empty: every sequence has all positions), and calls `tap` once for each of `hook_points` (indices, ascending
  // and unique), in the order in which the pass computes them: ascending, but those of dictionaries, which follow the
  // hook point that they are computed from. Ends at the deepest of them: later blocks are not executed. Rows right of a
  // sequence's end (padding) hold numbers without meaning; they influence no row before them.
  // Errors: RESOURCE_EXHAUSTED when the device has no memory left (the model stays usable), INTERNAL otherwise.
  virtual absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                               absl::Span<const int> hook_points, Tap tap) = 0;

  // Runs a pass over a batch as Forward has it, in which `editor` (pass_editor.h) takes part. The same errors, and
  // FAILED_PRECONDITION where the model has no logits and the editor wants them, or nothing can be replaced in it.
  virtual absl::Status Evaluate(const at::Tensor& token_ids, absl::Span<const int64_t> lengths, PassEditor& editor);

  // Blocks executed since the model was loaded, to count what early exit saves.
  virtual int64_t blocks_executed() const = 0;

 protected:
  ModelInfo info_;
  HookPoints hook_points_;
  std::vector<AttachedDictionary> dictionaries_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_MODEL_H_
