#include "server/base/name.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace hookline {

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

}  // namespace hookline
