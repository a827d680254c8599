// Accepts the memory that clients on this machine offer, and what they send about it afterwards (SHARED_MEMORY.md).
#ifndef HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_LISTENER_H_
#define HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_LISTENER_H_

#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "server/service/shared_memory/descriptor_closer.h"
#include "server/service/shared_memory/shared_memory.h"

namespace hookline {

// Thread-safe.
class SharedMemoryListener {
 public:
  SharedMemoryListener() = default;
  // Closes the connections. Memory that was taken stays as long as its owner keeps it.
  ~SharedMemoryListener();
  SharedMemoryListener(const SharedMemoryListener&) = delete;
  SharedMemoryListener& operator=(const SharedMemoryListener&) = delete;

  // Begins to listen for the clients of each of these TCP ports; call it once. At most `max_bytes` of clients' memory
  // are mapped at a time, and for one user at most half of what the other users leave. A port at which listening fails
  // is left out: values for its clients then go over the wire.
  void Listen(const std::vector<int>& ports, int64_t max_bytes);

  // Returns the memory that the user offered under a key of 32 hexadecimal digits, once; null if there is none.
  std::shared_ptr<SharedMemory> Take(absl::string_view key, uint32_t uid);

 private:
  struct Connection {
    int socket;
    uint32_t uid;  // of the process that connected
    // Received so far of an offer, or of an offset once there is memory (the server's machine is little-endian).
    std::array<uint8_t, 24> input;
    size_t input_bytes = 0;
    int descriptor = -1;  // until the offer is whole
    absl::Time offer_deadline;
    std::string key;  // in hexadecimal digits
    std::shared_ptr<SharedMemory> memory;
  };

  void ListenFor(int port);
  void Run();
  // Returns whether another connection may be accepted; listens or stops listening accordingly.
  bool HasRoom();
  void Accept(int listener);
  bool MayConnect(uint32_t uid) const;
  // Reads what has arrived; returns false if the connection must be closed.
  bool Receive(Connection& connection);
  // Takes the descriptors that came with a message; returns false if they are not the one of an offer.
  bool TakeDescriptors(Connection& connection, msghdr& message);
  bool TakeOffer(Connection& connection);
  // Returns the bytes that the user may have mapped in all.
  int64_t ShareOf(uint32_t uid);
  void CloseLateOffers();
  void Close(int socket);

  int64_t max_bytes_ = 0;
  // Bytes mapped by user. The thread adds; releasing memory subtracts.
  absl::flat_hash_map<uint32_t, std::shared_ptr<std::atomic<int64_t>>> mapped_bytes_;
  DescriptorCloser closer_;
  std::vector<int> listeners_;
  bool is_listening_ = true;  // used by the thread only
  int epoll_ = -1;
  // This is readable when the thread is to end.
  int stop_ = -1;
  absl::flat_hash_map<int, std::unique_ptr<Connection>> connections_;  // by socket; used by the thread only
  absl::Mutex mutex_;
  struct Offer {
    uint32_t uid;
    std::shared_ptr<SharedMemory> memory;
  };
  // The memory that no call has taken, by key.
  absl::flat_hash_map<std::string, Offer> offered_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// Returns the memory that the call's client offers for it. Null if it offers none, if a user other than the caller,
// whose uid is given, offered it, or if the kernel does not say which user calls.
std::shared_ptr<SharedMemory> TakeOffered(SharedMemoryListener* listener, const grpc::CallbackServerContext& context,
                                          std::optional<uint32_t> uid);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_LISTENER_H_
