// A model: weights on a device and the forward pass over them. This header does not include LibTorch's, so that every
// layer above can include it.
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

// Facts about a model other than its hook points.
struct ModelInfo {
  std::string name;          // the name that requests use
  std::string architecture;  // "nanochat"
  std::string variant;       // "I"
  std::string details;       // facts that affect activations, one line for people
  std::string warning;       // a message for the server's operator, one line; empty: none
  int layers = 0;
  int64_t width = 0;  // of the residual stream
  int heads = 0;
  int key_value_heads = 0;
  int64_t context_length = 0;   // in tokens; longer sequences are refused
  int64_t vocabulary_size = 0;  // token ids are less than this
  Dtype dtype = Dtype::kFloat32;
  std::string device;       // "cpu", "cuda:0"
  std::string fingerprint;  // 32 hexadecimal digits, see proto Model.fingerprint
  int64_t parameters = 0;
  // True if sequences of different lengths can share a batch, padded on the right.
  bool mixes_lengths = true;
  // The reason why the model computes no logits, which completes the sentence that begins with it; empty if it does.
  std::string no_logits = "is not a decoder, so its logits are not known";
};

// A sparse dictionary beside the model (dictionary/dictionary.h).
class Dictionary;

// A dictionary at the hook point whose rows it encodes. The values that it computes are hook points too.
struct AttachedDictionary {
  DictionaryInfo info;
  std::shared_ptr<const Dictionary> dictionary;
  int hook_point = 0;
  int output_point = 0;  // the one that it reconstructs: hook_point, or a later one for a transcoder
  int first_point = 0;   // of the dictionary's own hook points, which are consecutive
};

// Thread-compatible: one thread at a time (the model's executor) calls Forward; the const members are safe from any.
class Model {
 public:
  // Receives the value of one hook point during Forward: `(batch * positions, width)` on the model's device in its
  // dtype, possibly a view that is not contiguous. The tap can keep the tensor; nothing writes to it later.
  using Tap = absl::FunctionRef<void(int hook_point, const at::Tensor& value)>;

  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }
  const HookPoints& hook_points() const { return hook_points_; }
  const std::vector<AttachedDictionary>& dictionaries() const { return dictionaries_; }

  // Adds a dictionary at a hook point, and its own hook points at the end of the list. `output_point`: see
  // AttachedDictionary. Call it before the model is shared. FAILED_PRECONDITION: the widths differ, the output is
  // computed before the input, or the dictionary's name is taken.
  absl::Status Attach(std::shared_ptr<const Dictionary> dictionary, int hook_point, int output_point);

  // Runs the forward pass over `token_ids` (batch, positions), int64, on the model's device, every id below
  // vocabulary_size and positions <= context_length. Sequence i has lengths[i] tokens, followed by padding on the
  // right; if `lengths` is empty, every sequence has all positions. Rows of padding hold meaningless numbers and
  // influence no row before them.
  // Calls `tap` once for each of `hook_points` (indices, ascending and unique) in the order in which the pass computes
  // them. That order is ascending, except for hook points of dictionaries, which follow the hook point that they are
  // computed from. The pass ends at the deepest of them; later blocks are not executed.
  // Errors: RESOURCE_EXHAUSTED when the device has no memory left (the model stays usable), INTERNAL otherwise.
  virtual absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> lengths,
                               absl::Span<const int> hook_points, Tap tap) = 0;

  // Runs a pass over a batch, as described at Forward, in which `editor` (pass_editor.h) takes part. Errors: those of
  // Forward, and FAILED_PRECONDITION if the editor needs logits that the model does not have, or if nothing can be
  // replaced in the model's pass.
  virtual absl::Status Evaluate(const at::Tensor& token_ids, absl::Span<const int64_t> lengths, PassEditor& editor);

  // The number of blocks executed since the model was loaded, which shows what early exit saves.
  virtual int64_t blocks_executed() const = 0;

 protected:
  ModelInfo info_;
  HookPoints hook_points_;
  std::vector<AttachedDictionary> dictionaries_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_MODEL_H_
