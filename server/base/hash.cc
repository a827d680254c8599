#include "server/base/hash.h"

#include <xxhash.h>

#include <algorithm>
#include <iterator>
#include <new>

#include "absl/strings/escaping.h"

namespace hookline {

uint64_t Xxh3Of64Bits(absl::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

uint32_t Xxh32(absl::string_view bytes) { return XXH32(bytes.data(), bytes.size(), /*seed=*/0); }

// One state yields the digests of 64 and of 128 bits: XXH3_128bits_update is documented to do the same
// as XXH3_64bits_update.
Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  Reset();
}

void Xxh3::Reset() { XXH3_128bits_reset(state_.get()); }

void Xxh3::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Xxh3::Update(absl::Span<const uint8_t> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }

void Xxh3::Update(absl::string_view bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }

void Xxh3::UpdateWithLength(absl::string_view text) {
  const uint64_t size = text.size();
  XXH3_128bits_update(state_.get(), &size, sizeof(size));
  Update(text);
}

Xxh3::Hash Xxh3::hash() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return {hash.low64, hash.high64};
}

Xxh3::Digest Xxh3::digest() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
  Digest digest;
  std::copy(std::begin(canonical.digest), std::end(canonical.digest), digest.begin());
  return digest;
}

std::string Xxh3::hex() const {
  const Digest bytes = digest();
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

uint64_t Xxh3::hash64() const { return XXH3_64bits_digest(state_.get()); }

}  // namespace hookline
