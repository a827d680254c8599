#include "server/base/escape.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

// The code point at the start of a text and how many bytes it takes; 0 bytes if it is not valid UTF-8.
struct Decoded {
  uint32_t point = 0;
  size_t bytes = 0;
};

Decoded Decode(absl::string_view text) {
  const auto byte_at = [&](size_t i) -> uint32_t { return static_cast<unsigned char>(text[i]); };
  const uint32_t first = byte_at(0);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return {};
  uint32_t point = first & (0x7f >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte_at(i) & 0xc0) != 0x80) return {};
    point = point << 6 | (byte_at(i) & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool is_surrogate = point >= 0xd800 && point <= 0xdfff;
  if (point < kLeast[bytes] || is_surrogate || point > 0x10ffff) return {};
  return {point, bytes};
}

bool IsShown(uint32_t point) {
  if (point < 0x20 || (point >= 0x7f && point <= 0x9f)) return false;
  if (point == 0x61c || point == 0x200e || point == 0x200f || point == 0xfeff) return false;
  return !(point >= 0x2028 && point <= 0x202e) && !(point >= 0x2066 && point <= 0x2069);
}

void AppendEscape(unsigned char byte, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (byte) {
    case '\n':
      out->append("\\n");
      return;
    case '\t':
      out->append("\\t");
      return;
    case '\r':
      out->append("\\r");
      return;
    default:
      out->append({'\\', 'x', kHex[byte >> 4], kHex[byte & 0xf]});
  }
}

}  // namespace

std::string Escaped(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Decoded decoded = Decode(text);
    const size_t bytes = decoded.bytes == 0 ? 1 : decoded.bytes;
    if (decoded.bytes != 0 && IsShown(decoded.point)) {
      out.append(text.data(), bytes);
    } else {
      for (size_t i = 0; i < bytes; ++i) AppendEscape(static_cast<unsigned char>(text[i]), &out);
    }
    text.remove_prefix(bytes);
  }
  return out;
}

std::string Quoted(absl::string_view text, size_t max_bytes) {
  size_t end = text.size();
  if (end > max_bytes) {
    end = max_bytes;
    // The cut must not split a character.
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  }
  return absl::StrCat("'", Escaped(text.substr(0, end)), end < text.size() ? "..." : "", "'");
}

}  // namespace hookline
