// The names that transformers gives to the modules of an architecture.
#ifndef HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_
#define HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace hookline {

// The part of the computation that a module inside attention or the MLP does.
enum class ModuleRole {
  kQuery,        // the query projection alone
  kGatedQuery,   // the query projection and a gate beside it
  kLatentQuery,  // the query projection of a latent, which is not captured
  kKey,
  kValue,
  kFusedAttention,  // queries, keys and values beside each other
  kAttentionOut,
  kQueryNorm,
  kKeyNorm,
  kGate,         // the projection that the activation function reads
  kUp,           // the projection that multiplies it
  kFusedGateUp,  // both beside each other
  kActivation,
  kDown,
  kRouter,
  kExperts,
  kValueNorm,
  // None of these: of them at most the input is captured, where it is that of attention or the MLP.
  kOtherOfAttentionInput,
  kOtherOfMlpInput,
  kInnerAttention,
  kInnerMlp,
  kPerLayer,  // of the embedding that each layer of Gemma 3n and 4 has of its own
};

// A path below the block. An architecture may have it in some layers only.
struct InnerModule {
  std::string path;
  ModuleRole role;
};

struct ModuleNames {
  std::vector<const char*> blocks;     // what stands before the block's number
  std::vector<const char*> attention;  // paths below the block; a layer has one of them
  const char* feed_forward;            // empty: none of its own
  const char* ln1;
  const char* ln2;  // empty: the architecture has none; so for the two that follow
  const char* ln1_post;
  const char* ln2_post;
  std::vector<const char*> bases;  // what stands before the ones that follow
  const char* ln_final;
  const char* embedding;
  const char* position_embedding;  // empty: none
  std::vector<InnerModule> inner;
};

// `architecture`: a model_type of transformers.
ModuleNames ModuleNamesOf(absl::string_view architecture);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_MODULE_NAMES_H_
