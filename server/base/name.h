// Names that people give to models, datasets, feeds and recordings, and that requests, metrics and manifests repeat.
#ifndef HOOKLINE_SERVER_BASE_NAME_H_
#define HOOKLINE_SERVER_BASE_NAME_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace hookline {

inline constexpr size_t kMaxNameBytes = 128;

// Returns whether `text` is 1 to kMaxNameBytes ASCII letters, digits, `.`, `_` and `-`.
bool IsName(absl::string_view text);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_NAME_H_
