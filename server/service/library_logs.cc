#include "server/service/library_logs.h"

#include <string>

#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "spdlog/spdlog.h"

namespace hookline {

void RouteLibraryLogs() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    const auto level = args->severity == GPR_LOG_SEVERITY_ERROR  ? spdlog::level::warn
                       : args->severity == GPR_LOG_SEVERITY_INFO ? spdlog::level::debug
                                                                 : spdlog::level::trace;
    spdlog::log(level, "grpc: {}", args->message);
  });
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel level, const char* /*file*/, int /*line*/, const std::string& message) {
        spdlog::log(level == google::protobuf::LOGLEVEL_FATAL ? spdlog::level::critical : spdlog::level::debug,
                    "protobuf: {}", message);
      });
}

}  // namespace hookline
