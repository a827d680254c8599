// Memory that this client offers to a server on the same machine, so that values come without a socket in between.
// server/service/shared_memory/SHARED_MEMORY.md specifies what client and server say to each other.
#ifndef HOOKLINE_CLIENT_CPP_OFFERED_MEMORY_H_
#define HOOKLINE_CLIENT_CPP_OFFERED_MEMORY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace hookline::client {

// The call metadata that names it.
inline constexpr char kSharedMemoryMetadata[] = "hookline-shared-memory";

// Belongs to one call. Thread-safe.
class OfferedMemory {
 public:
  // Offers `bytes` bytes to the server at `address`. Null where it is not on this machine (host:port with a loopback
  // host), has no use for them, or they cannot be had.
  static std::shared_ptr<OfferedMemory> Offer(const std::string& address, int64_t bytes);
  ~OfferedMemory();
  OfferedMemory(const OfferedMemory&) = delete;
  OfferedMemory& operator=(const OfferedMemory&) = delete;

  // The metadata's value.
  const std::string& key() const { return key_; }
  int64_t bytes() const { return bytes_; }

  // Tells how many pieces the server makes of it, as `started` says. Until then there is nothing to hold.
  void SetPieces(int64_t pieces);
  int64_t pieces() const;

  // The values at `offset`, which are held until Release. Null if they would not lie within the memory.
  const uint8_t* Hold(int64_t offset, int64_t bytes);
  // Call it once for each Hold, when the values have been read. The server is told of several at once, since each
  // time wakes it.
  void Release(int64_t offset);
  // The number of chunks whose values are held.
  int64_t held() const;

 private:
  OfferedMemory(std::string key, const uint8_t* data, int64_t bytes, int socket)
      : key_(std::move(key)), data_(data), bytes_(bytes), socket_(socket) {}

  const std::string key_;
  const uint8_t* const data_;
  const int64_t bytes_;
  const int socket_;
  mutable absl::Mutex mutex_;
  int64_t pieces_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t held_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<int64_t> released_ ABSL_GUARDED_BY(mutex_);  // that the server is not told of yet
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_OFFERED_MEMORY_H_
