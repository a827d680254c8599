#include "server/metrics/http_responder.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/steady.h"

namespace hookline {
namespace {

// Bounds an exchange, from its connection to the last byte of the answer: twice as long as scrapers usually wait.
constexpr absl::Duration kDeadline = absl::Seconds(20);
// A scraper's request takes about 300 bytes.
constexpr size_t kMaxRequestBytes = 8192;
// This is room for a scraper and some people. If more connect, the oldest connection is closed, so that slow ones keep
// nobody out.
constexpr size_t kMaxConnections = 32;
// The time that a connection waits in the kernel while the process has no descriptor for it.
constexpr absl::Duration kDescriptorWait = absl::Milliseconds(100);

}  // namespace

HttpResponder::HttpResponder(BoundAddress bound, std::string path, std::string content_type,
                             std::function<std::string()> page)
    : bound_(std::move(bound)),
      path_(std::move(path)),
      content_type_(std::move(content_type)),
      page_(std::move(page)),
      stop_(eventfd(0, EFD_CLOEXEC)),
      thread_([this] { Loop(); }) {}

HttpResponder::~HttpResponder() {
  const uint64_t one = 1;
  (void)!write(stop_, &one, sizeof one);
  thread_.join();
  while (!connections_.empty()) Close(connections_.begin());
  for (int listener : bound_.sockets) close(listener);
  close(stop_);
}

void HttpResponder::Loop() {
  while (true) {
    std::vector<pollfd> waits = {{stop_, POLLIN, 0}};
    for (int listener : bound_.sockets) waits.push_back({listener, POLLIN, 0});
    for (const Connection& connection : connections_) {
      const short events = connection.response.empty() ? POLLIN : POLLOUT;
      waits.push_back({connection.descriptor, events, 0});
    }
    // The oldest has the first deadline.
    const absl::Duration left =
        connections_.empty() ? absl::InfiniteDuration() : connections_.front().deadline - SteadyNow();
    const int timeout = connections_.empty() ? -1 : std::max(0, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (poll(waits.data(), waits.size(), timeout) < 0) continue;  // EINTR
    if (waits[0].revents != 0) return;
    size_t at = 1 + bound_.sockets.size();
    for (auto it = connections_.begin(); it != connections_.end(); ++at) {
      const auto connection = it++;
      const bool is_over = connection->deadline <= SteadyNow();
      if (is_over || (waits[at].revents != 0 && Advance(*connection) == Progress::kDone)) Close(connection);
    }
    for (size_t i = 0; i < bound_.sockets.size(); ++i) {
      if (waits[1 + i].revents != 0) Accept(bound_.sockets[i]);
    }
  }
}

void HttpResponder::Accept(int listener) {
  const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection < 0) {
    if (errno == EMFILE || errno == ENFILE) absl::SleepFor(kDescriptorWait);
    return;
  }
  if (connections_.size() == kMaxConnections) Close(connections_.begin());
  connections_.push_back({connection, SteadyNow() + kDeadline, "", "", 0});
}

HttpResponder::Progress HttpResponder::Advance(Connection& connection) {
  if (connection.response.empty()) {
    std::array<char, kMaxRequestBytes> bytes;
    const size_t room = kMaxRequestBytes - connection.request.size();
    const ssize_t received = recv(connection.descriptor, bytes.data(), room, 0);
    if (received < 0) return errno == EAGAIN || errno == EINTR ? Progress::kWaiting : Progress::kDone;
    if (received == 0) return Progress::kDone;
    connection.request.append(bytes.data(), static_cast<size_t>(received));
    const bool is_whole = absl::StrContains(connection.request, "\r\n\r\n");
    if (!is_whole && connection.request.size() < kMaxRequestBytes) return Progress::kWaiting;
    connection.response = is_whole ? Respond(connection.request)
                                   : "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n";
  }
  const ssize_t sent = send(connection.descriptor, connection.response.data() + connection.sent,
                            connection.response.size() - connection.sent, MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN || errno == EINTR ? Progress::kWaiting : Progress::kDone;
  connection.sent += static_cast<size_t>(sent);
  return connection.sent == connection.response.size() ? Progress::kDone : Progress::kWaiting;
}

std::string HttpResponder::Respond(absl::string_view request) const {
  const std::vector<absl::string_view> words = absl::StrSplit(request.substr(0, request.find("\r\n")), ' ');
  const auto answer = [](absl::string_view status, absl::string_view type, absl::string_view body) {
    return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", type, "\r\nContent-Length: ", body.size(),
                        "\r\nConnection: close\r\n\r\n", body);
  };
  if (words.size() != 3 || !absl::StartsWith(words[2], "HTTP/1.")) return answer("400 Bad Request", "text/plain", "");
  if (words[1].substr(0, words[1].find('?')) != path_) {
    return answer("404 Not Found", "text/plain", absl::StrCat("The only page is ", path_, ".\n"));
  }
  if (words[0] != "GET" && words[0] != "HEAD") return answer("405 Method Not Allowed", "text/plain", "");
  std::string response = answer("200 OK", content_type_, page_());
  if (words[0] == "HEAD") response.resize(response.find("\r\n\r\n") + 4);
  return response;
}

void HttpResponder::Close(std::list<Connection>::iterator connection) {
  close(connection->descriptor);
  connections_.erase(connection);
}

}  // namespace hookline
