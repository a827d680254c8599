// A connection that can be cut.
#ifndef HOOKLINE_TESTS_SERVICE_RELAY_H_
#define HOOKLINE_TESTS_SERVICE_RELAY_H_

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include "tests/support/loopback.h"

namespace hookline {

// Forwards one connection to a port of the loopback until it is told to drop the connection. This looks like a machine
// that loses its cable and whose kernel then resets what is left.
class Relay {
 public:
  explicit Relay(int target_port) : target_port_(target_port) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    socklen_t length = sizeof address;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Run(); });
  }

  ~Relay() {
    Drop();
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
  }

  int port() const { return port_; }

  void Drop() {
    absl::MutexLock lock(&mutex_);
    for (int socket : sockets_) shutdown(socket, SHUT_RDWR);
  }

 private:
  void Run() {
    const int client = accept(listener_, nullptr, nullptr);
    if (client < 0) return;
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(target_port_);
    EXPECT_EQ(connect(server, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    {
      absl::MutexLock lock(&mutex_);
      sockets_ = {client, server};
    }
    std::thread up([=] { Forward(client, server); });
    Forward(server, client);
    up.join();
    absl::MutexLock lock(&mutex_);
    sockets_.clear();
    close(client);
    close(server);
  }

  static void Forward(int from, int to) {
    std::vector<char> buffer(64 << 10);
    ssize_t bytes;
    while ((bytes = read(from, buffer.data(), buffer.size())) > 0) {
      if (send(to, buffer.data(), static_cast<size_t>(bytes), MSG_NOSIGNAL) != bytes) break;
    }
    shutdown(to, SHUT_RDWR);
  }

  const int target_port_;
  int listener_;
  int port_ = 0;
  absl::Mutex mutex_;
  std::vector<int> sockets_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_RELAY_H_
