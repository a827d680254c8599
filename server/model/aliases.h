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
  std::vector<std::pair<std::string, int>> names;  // each with the index of its hook point, ascending by it
  // Names of tensors that Hookline does not have, each with what completes the sentence that begins with the name: the
  // nearest that it has, and how they differ.
  std::vector<std::pair<std::string, std::string>> refused;
};

// The aliases of a decoder of that architecture (ModelInfo::architecture):
// - those of the original collector (`blocks.3.hook_attn`),
// - the names of TransformerLens 3's bridge (`blocks.3.attn.hook_in`),
// - the paths of the modules in transformers, with `.input` or `.output` and, for the output, without
//   (`model.layers.3.mlp`), from the top, from the language model and from the base model on (`layers.3`).
// Empty for architectures whose hook points have other names, such as TorchScript.
Aliases AliasesOf(const HookPoints& points, absl::string_view architecture);

// The same hook points, which requests can name by these aliases too.
HookPoints WithAliases(const HookPoints& points, absl::string_view architecture);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_ALIASES_H_
