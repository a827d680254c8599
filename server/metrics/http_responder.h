// A web server for one page of text, which no client can block: it has one thread, keeps no connection open, and sets a
// deadline for each exchange as a whole, however slowly its bytes come.
#ifndef HOOKLINE_SERVER_METRICS_HTTP_RESPONDER_H_
#define HOOKLINE_SERVER_METRICS_HTTP_RESPONDER_H_

#include <functional>
#include <list>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "server/base/listen_address.h"

namespace hookline {

class HttpResponder {
 public:
  // Answers GET and HEAD of `path` with what `page` returns at that moment, as `content_type`. Takes ownership of
  // the sockets.
  HttpResponder(BoundAddress bound, std::string path, std::string content_type, std::function<std::string()> page);
  // Closes every connection.
  ~HttpResponder();
  HttpResponder(const HttpResponder&) = delete;
  HttpResponder& operator=(const HttpResponder&) = delete;

  const BoundAddress& bound() const { return bound_; }

 private:
  struct Connection {
    int descriptor;
    absl::Time deadline;
    std::string request;   // what has come so far
    std::string response;  // empty until the request is whole
    size_t sent = 0;
  };
  enum class Progress { kWaiting, kDone };

  void Loop();
  void Accept(int listener);
  // Reads and writes what is possible without waiting.
  Progress Advance(Connection& connection);
  std::string Respond(absl::string_view request) const;
  void Close(std::list<Connection>::iterator connection);

  BoundAddress bound_;
  const std::string path_;
  const std::string content_type_;
  const std::function<std::string()> page_;
  const int stop_;                     // readable when the thread must end
  std::list<Connection> connections_;  // only the thread uses them; the oldest first
  std::thread thread_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_HTTP_RESPONDER_H_
