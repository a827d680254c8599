#include "server/base/sha256.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

namespace hookline {

Sha256 Sha256Of(absl::string_view text) {
  Sha256 digest = {};
  unsigned int bytes = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &bytes, EVP_sha256(), nullptr);
  return digest;
}

bool SameDigest(const Sha256& a, const Sha256& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

}  // namespace hookline
