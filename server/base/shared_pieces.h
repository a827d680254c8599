// Defines the pieces into which a server cuts memory that a client shares with it
// (server/service/shared_memory/SHARED_MEMORY.md).
#ifndef HOOKLINE_SERVER_BASE_SHARED_PIECES_H_
#define HOOKLINE_SERVER_BASE_SHARED_PIECES_H_

#include <cstdint>

namespace hookline {

// The memory's size, and that of its pieces, is a multiple of this, whatever pages the machine has.
inline constexpr int64_t kSharedPageBytes = 4096;

// Returns the bytes of a piece, each of which holds the values of one message of at most `message_bytes`.
constexpr int64_t SharedPieceBytes(int64_t message_bytes) {
  return (message_bytes + kSharedPageBytes - 1) / kSharedPageBytes * kSharedPageBytes;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_SHARED_PIECES_H_
