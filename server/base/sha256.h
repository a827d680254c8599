// SHA-256, the only form in which clients' tokens are stored.
#ifndef HOOKLINE_SERVER_BASE_SHA256_H_
#define HOOKLINE_SERVER_BASE_SHA256_H_

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace hookline {

using Sha256 = std::array<uint8_t, 32>;

Sha256 Sha256Of(absl::string_view text);

// Compares two digests in a time that does not depend on where they differ.
bool SameDigest(const Sha256& a, const Sha256& b);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SHA256_H_
