// The names that people know a decoder's hook points by from other tools.
#ifndef HOOKLINE_SERVER_MODEL_ALIASES_H_
#define HOOKLINE_SERVER_MODEL_ALIASES_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "server/model/hook_points.h"

namespace hookline {

struct Aliases {
  std::vector<std::pair<std::string, int>>
      names;  // each with its hook point's index, in ascending order of the indices
  // Names of tensors that Hookline does not have. The second string completes the sentence that begins with the name:
  // it says which hook point is nearest, and how the two differ.
  std::vector<std::pair<std::string, std::string>> refused;
};

// Returns the aliases of a decoder of that architecture (ModelInfo::architecture):
// - the names of the original collector (`blocks.3.hook_attn`),
// - the names of TransformerLens 3's bridge (`blocks.3.attn.hook_in`),
// - the module paths of transformers, followed by `.input`, by `.output` or, for the output, by nothing
//   (`model.layers.3.mlp`). A path can begin at the top, at the language model or at the base model (`layers.3`).
// Returns none for architectures whose hook points have other names, such as TorchScript.
Aliases AliasesOf(const HookPoints& points, absl::string_view architecture);

// Returns the same hook points, with these aliases as further names that requests can use.
HookPoints WithAliases(const HookPoints& points, absl::string_view architecture);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ALIASES_H_
