// The form of the server's log, and where gRPC and Protobuf, which otherwise write to standard error themselves, log
// to.
#ifndef HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
#define HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_

#include <memory>

#include "spdlog/formatter.h"

namespace hookline {

// One line for each message, whatever is in it: time, level, and the message as Escaped gives it. Names in it come from
// files and clients, and must not forge a line or reach a terminal as control characters.
std::unique_ptr<spdlog::formatter> LogFormatter();

// Formats each message as one line with a JSON object: `time`, `level`, and `message`, which is escaped likewise; of
// events (event_log.h) their values too.
std::unique_ptr<spdlog::formatter> JsonLogFormatter();

// Sends their logs to spdlog's default logger, for the whole process; call it once, before either is used. What a
// client can cause at will (a string that is not UTF-8) is logged for debugging only.
void RouteLibraryLogs();

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
