// Reads and appends numbers in the byte order of files and tokens: the lowest byte first.
#ifndef HOOKLINE_SERVER_BASE_LITTLE_ENDIAN_H_
#define HOOKLINE_SERVER_BASE_LITTLE_ENDIAN_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

// Returns the number that `bytes`, at most 8 of them, encode.
inline uint64_t ReadLittleEndian(absl::Span<const uint8_t> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return value;
}

inline uint64_t ReadLittleEndian(absl::string_view bytes) {
  return ReadLittleEndian(absl::Span<const uint8_t>(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

// Appends the low `bytes` bytes of `value`, at most 8.
inline void AppendLittleEndian(uint64_t value, size_t bytes, std::string* out) {
  for (size_t i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_LITTLE_ENDIAN_H_
