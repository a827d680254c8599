// A change of one of a dictionary's latents. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_

#include <cstdint>

namespace hookline {

// A change of a latent's activation a.
struct LatentEdit {
  enum class Kind {
    kClamp,  // value
    kScale,  // value a
  };
  int64_t latent = 0;
  Kind kind = Kind::kClamp;
  double value = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_
