#include "server/service/connection_acceptor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/socket_peer.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// The pause after running out of descriptors. New connections wait in the kernel meanwhile.
constexpr absl::Duration kDescriptorWait = absl::Milliseconds(100);
// A line for each refusal would let anyone fill the log.
constexpr absl::Duration kRefusalLogInterval = absl::Seconds(10);

// Returns whether `error`, with which an accept failed, is about the listener and not about a connection that is gone.
bool IsOfListener(int error) {
  return error == EBADF || error == EINVAL || error == ENOTSOCK || error == EOPNOTSUPP || error == EFAULT;
}

}  // namespace

ConnectionAcceptor::~ConnectionAcceptor() { Stop(); }

absl::Status ConnectionAcceptor::Bind(const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    ASSIGN_OR_RETURN(BoundAddress bound, BindAddress(address));
    bound_.push_back(std::move(bound));
  }
  return absl::OkStatus();
}

void ConnectionAcceptor::Run(const ConnectionLimits& limits, HandOn hand_on, std::function<void(absl::Status)> lost) {
  limits_ = limits;
  hand_on_ = std::move(hand_on);
  lost_ = std::move(lost);
  stop_ = eventfd(0, EFD_CLOEXEC);
  thread_ = std::thread([this] { Loop(); });
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_, &one, sizeof one);
    thread_.join();
    close(stop_);
  }
  for (BoundAddress& bound : bound_) {
    for (int listener : bound.sockets) close(listener);
    bound.sockets.clear();
    if (!bound.unix_path.empty()) unlink(std::exchange(bound.unix_path, "").c_str());
  }
}

void ConnectionAcceptor::Loop() {
  std::vector<pollfd> waits = {{stop_, POLLIN, 0}};
  for (const BoundAddress& bound : bound_) {
    for (int listener : bound.sockets) waits.push_back({listener, POLLIN, 0});
  }
  // While there are no descriptors, the listeners would be ready all the time, so only stop_ is waited for.
  bool no_descriptors = false;
  while (true) {
    const size_t count = no_descriptors ? 1 : waits.size();
    const int timeout = no_descriptors ? static_cast<int>(absl::ToInt64Milliseconds(kDescriptorWait)) : -1;
    no_descriptors = false;
    if (poll(waits.data(), count, timeout) < 0) continue;  // EINTR
    if (waits[0].revents != 0) return;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents == 0) continue;
      const Accepted accepted = AcceptFrom(waits[i].fd);
      no_descriptors = no_descriptors || accepted == Accepted::kNoDescriptors;
      if (accepted == Accepted::kLost) return;
    }
  }
}

ConnectionAcceptor::Accepted ConnectionAcceptor::AcceptFrom(int listener) {
  sockaddr_storage peer = {};
  socklen_t length = sizeof peer;
  const int connection = accept4(listener, reinterpret_cast<sockaddr*>(&peer), &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection < 0) {
    const int error = errno;
    if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
      LogRefusal(absl::StrCat("new connections wait: ", std::strerror(error)));
      return Accepted::kNoDescriptors;
    }
    if (!IsOfListener(error)) return Accepted::kNone;
    lost_(absl::UnavailableError(absl::StrCat("a listening socket does not accept any more: ", std::strerror(error))));
    return Accepted::kLost;
  }
  if (!Count(connection, AddressOf(peer))) {
    close(connection);
    return Accepted::kNone;
  }
  hand_on_(listener, connection, peer);
  return Accepted::kOne;
}

bool ConnectionAcceptor::Count(int connection, const std::string& address) {
  const auto is_full = [&] {
    return static_cast<int>(connections_.size()) >= limits_.all || CountOf(address) >= limits_.per_address;
  };
  if (is_full()) ForgetClosed();
  if (is_full()) {
    const int own = CountOf(address);
    LogRefusal(own >= limits_.per_address
                   ? absl::StrCat("a connection from ", address, " is refused: that address has ", own, " of at most ",
                                  limits_.per_address, " (--max-connections-per-address)")
                   : absl::StrCat("a connection from ", address, " is refused: there are ", connections_.size(),
                                  " of at most ", limits_.all, " (--max-connections)"));
    return false;
  }
  connections_.push_back({connection, SocketCookie(connection), address});
  ++by_address_[address];
  return true;
}

int ConnectionAcceptor::CountOf(const std::string& address) const {
  const auto found = by_address_.find(address);
  return found == by_address_.end() ? 0 : found->second;
}

void ConnectionAcceptor::ForgetClosed() {
  const auto is_closed = [this](const Connection& connection) {
    if (SocketCookie(connection.descriptor) == connection.cookie) return false;
    const auto found = by_address_.find(connection.address);
    if (--found->second == 0) by_address_.erase(found);
    return true;
  };
  connections_.erase(std::remove_if(connections_.begin(), connections_.end(), is_closed), connections_.end());
}

void ConnectionAcceptor::LogRefusal(const std::string& why) {
  ++refusals_;
  if (SteadyNow() - last_refusal_logged_ < kRefusalLogInterval) return;
  spdlog::warn("{}{}", why,
               refusals_ > 1 ? absl::StrCat("; ", refusals_ - 1, " more since the last such message") : "");
  last_refusal_logged_ = SteadyNow();
  refusals_ = 0;
}

}  // namespace hookline
