// A change to a latent of a dictionary. Free of LibTorch.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_

#include <cstdint>

namespace hookline {

// A change to a latent's activation a.
struct LatentEdit {
  enum class Kind {
    kClamp,  // a becomes value
    kScale,  // a becomes value a
  };
  int64_t latent = 0;
  Kind kind = Kind::kClamp;
  double value = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_LATENT_EDIT_H_
