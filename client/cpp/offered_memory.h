// Memory that this client offers to a server on the same machine, so that values come without a socket in between.
// server/service/shared_memory/SHARED_MEMORY.md specifies the protocol between client and server.
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

// The call metadata that names the memory.
inline constexpr char kSharedMemoryMetadata[] = "hookline-shared-memory";

// Belongs to one call. Thread-safe.
class OfferedMemory {
 public:
  // Offers `bytes` bytes to the server at `address`. Returns null if the server is not on this machine (host:port with
  // a loopback host) or does not take them, or if they cannot be allocated.
  static std::shared_ptr<OfferedMemory> Offer(const std::string& address, int64_t bytes);
  ~OfferedMemory();
  OfferedMemory(const OfferedMemory&) = delete;
  OfferedMemory& operator=(const OfferedMemory&) = delete;

  // Returns the metadata's value.
  const std::string& key() const { return key_; }
  int64_t bytes() const { return bytes_; }

  // Sets how many pieces the server cuts the memory into, as `started` says. Until then there is nothing to hold.
  void SetPieces(int64_t pieces);
  int64_t pieces() const;

  // Returns the values at `offset`, which are held until Release. Null if they would not lie within the memory.
  const uint8_t* Hold(int64_t offset, int64_t bytes);
  // Call it once for each Hold, when the values have been read. The server is notified of several at once, since each
  // notification wakes it.
  void Release(int64_t offset);
  // Returns the number of chunks whose values are held.
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
  std::vector<int64_t> released_ ABSL_GUARDED_BY(mutex_);  // those not reported to the server yet
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_OFFERED_MEMORY_H_
