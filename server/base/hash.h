// Computes XXH3 of bytes, whole or in pieces, for checksums, digests and fingerprints, none of which is secret.
//
//   Xxh3 hash;
//   hash.Update(header);
//   hash.Update(values);
//   manifest.xxh3 = hash.hex();
#ifndef HOOKLINE_SERVER_BASE_HASH_H_
#define HOOKLINE_SERVER_BASE_HASH_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct XXH3_state_s;

namespace hookline {

// Returns the 64-bit XXH3.
uint64_t Xxh3Of64Bits(absl::string_view bytes);

// Returns the XXH32, with which resume tokens end.
uint32_t Xxh32(absl::string_view bytes);

// XXH3 of bytes that come in pieces. One thread at a time.
class Xxh3 {
 public:
  using Digest = std::array<uint8_t, 16>;  // canonical: big-endian

  // The digest's 128 bits as two numbers.
  struct Hash {
    uint64_t low = 0;
    uint64_t high = 0;
  };

  Xxh3();

  void Reset();
  void Update(absl::Span<const uint8_t> bytes);
  void Update(absl::string_view bytes);
  // Adds the length of `text` as 64 bits, and then `text`, so that no two lists of texts give the same bytes.
  void UpdateWithLength(absl::string_view text);

  // These return the hash of the bytes since the last Reset.
  Hash hash() const;
  Digest digest() const;
  std::string hex() const;  // the digest as 32 hexadecimal digits
  uint64_t hash64() const;  // the 64-bit XXH3

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };

  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_HASH_H_
