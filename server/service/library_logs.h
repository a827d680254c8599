// Where gRPC and Protobuf, which otherwise write to standard error themselves, log to.
#ifndef HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
#define HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_

namespace hookline {

// Sends their logs to spdlog's default logger, for the whole process; to be called once, before either is used. What a
// client can cause at will (a string that is not UTF-8) is logged for debugging only.
void RouteLibraryLogs();

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_LIBRARY_LOGS_H_
