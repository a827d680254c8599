// The format of the server's log, to which gRPC and Protobuf log too, instead of to standard error.
#ifndef HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
#define HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_

#include <memory>

#include "spdlog/formatter.h"

namespace hookline {

// Formats each message as one line, whatever is in it: time, level, and the message as Escaped gives it. Names in a
// message come from files and clients, and must not forge a line or reach a terminal as control characters.
std::unique_ptr<spdlog::formatter> LogFormatter();

// Formats each message as one line with a JSON object: `time`, `level`, and `message`, which is escaped likewise; for
// events (event_log.h) also their values.
std::unique_ptr<spdlog::formatter> JsonLogFormatter();

// Sends the logs of gRPC and Protobuf to spdlog's default logger, for the whole process; call it once, before either is
// used. Messages that a client can cause at will (about a string that is not UTF-8) are logged for debugging only.
void RouteLibraryLogs();

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
