// The facts about a dictionary besides its weights. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_INFO_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_INFO_H_

#include <cstdint>
#include <string>

namespace hookline {

struct DictionaryInfo {
  std::string name;          // the name that requests use
  std::string architecture;  // the library's word for it, e.g. "jumprelu"
  std::string format;        // "sae_lens"
  std::string hook_point;    // as its files name it; empty if they do not
  std::string output_point;  // of a transcoder, as its files name it; empty for an autoencoder
  std::string fingerprint;   // 32 hexadecimal digits, a digest of weights and configuration
  int64_t width = 0;         // of the rows that it encodes
  int64_t output_width = 0;  // of the rows that it decodes
  int head = -1;             // the head whose part of a row it encodes; -1: whole rows
  int64_t latents = 0;
  int64_t max_active = 0;  // the most latents of a row that can be nonzero; 0: no limit
};

// The stages of a dictionary's computation on a row, each a hook point under SAELens's name.
enum class DictionaryPoint {
  kInput,           // hook_sae_input: the row
  kPreActivations,  // hook_sae_acts_pre: its latents before the activation function
  kActivations,     // hook_sae_acts_post: its latents
  kReconstruction,  // hook_sae_recons: decoded, before a normalisation is undone or a skip connection is added
  kError,           // hook_sae_error: the row (a transcoder's: the output's row) minus its reconstruction
};
constexpr int kDictionaryPoints = 5;

// `hook_sae_input` and so on.
const char* NameOf(DictionaryPoint point);
// A description of one sentence.
const char* DescriptionOf(DictionaryPoint point);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_INFO_H_
