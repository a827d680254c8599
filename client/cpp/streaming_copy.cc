#include "client/cpp/streaming_copy.h"

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace hookline::client {

#ifdef __SSE2__

namespace {

// Smaller copies fit into the nearest cache beside their source.
constexpr size_t kStreamedBytes = size_t{64} << 10;
constexpr size_t kLineBytes = 64;

}  // namespace

void StreamingCopy(void* destination, const void* source, size_t bytes) {
  if (bytes < kStreamedBytes) {
    std::memcpy(destination, source, bytes);
    return;
  }
  auto* to = static_cast<uint8_t*>(destination);
  const auto* from = static_cast<const uint8_t*>(source);
  const size_t before_line = (kLineBytes - reinterpret_cast<uintptr_t>(to) % kLineBytes) % kLineBytes;
  std::memcpy(to, from, before_line);
  size_t done = before_line;
  for (; done + kLineBytes <= bytes; done += kLineBytes) {
    const auto* line = reinterpret_cast<const __m128i*>(from + done);
    const __m128i a = _mm_loadu_si128(line), b = _mm_loadu_si128(line + 1), c = _mm_loadu_si128(line + 2),
                  d = _mm_loadu_si128(line + 3);
    auto* out = reinterpret_cast<__m128i*>(to + done);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  // Locks do not order streaming stores.
  _mm_sfence();
  std::memcpy(to + done, from + done, bytes - done);
}

#else

void StreamingCopy(void* destination, const void* source, size_t bytes) { std::memcpy(destination, source, bytes); }

#endif

}  // namespace hookline::client
