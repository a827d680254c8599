// The names that transformers gives to the modules of an architecture.
#ifndef HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_
#define HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace hookline {

// The part of the computation that a module inside attention or the MLP performs.
enum class ModuleRole {
  kQuery,        // the query projection alone
  kGatedQuery,   // the query projection and a gate, side by side
  kLatentQuery,  // the query projection of a latent, which is not captured
  kKey,
  kValue,
  kFusedAttention,  // queries, keys and values side by side
  kAttentionOut,
  kQueryNorm,
  kKeyNorm,
  kGate,         // the projection that the activation function reads
  kUp,           // the projection that is multiplied by the activation
  kFusedGateUp,  // both projections side by side
  kActivation,
  kDown,
  kRouter,
  kExperts,
  kValueNorm,
  // Other modules: at most their input is captured, if it is that of attention or the MLP.
  kOtherOfAttentionInput,
  kOtherOfMlpInput,
  kInnerAttention,
  kInnerMlp,
  kPerLayer,  // part of each layer's embedding in Gemma 4
};

// A path below the block. Some layers of an architecture can lack it.
struct InnerModule {
  std::string path;
  ModuleRole role;
};

// An empty name: the architecture has no such module.
struct ModuleNames {
  std::vector<const char*> blocks;     // prefixes of the block's number
  std::vector<const char*> attention;  // paths below the block; a layer has one of them
  const char* feed_forward = "";
  const char* ln1 = "";
  const char* ln2 = "";
  const char* ln1_post = "";
  const char* ln2_post = "";
  std::vector<const char*> bases;  // prefixes of the names that follow
  const char* ln_final = "";
  const char* embedding = "";
  const char* position_embedding = "";
  std::vector<InnerModule> inner;
};

// `architecture` is a model_type of transformers.
ModuleNames ModuleNamesOf(absl::string_view architecture);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_
