// Exceptions on gRPC's threads, and on those where calls go on.
#ifndef HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_
#define HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_

#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "server/service/status_mapping.h"
#include "spdlog/spdlog.h"

namespace hookline {

inline absl::Status ExceptionStatus(absl::string_view method, absl::string_view what) {
  spdlog::error("{}: unexpected: {}", std::string(method), std::string(what));
  return absl::InternalError(absl::StrCat(method, ": unexpected: ", what));
}

// Runs `action`, which answers an absl::Status or nothing, and answers that status. An exception becomes INTERNAL and a
// line in the log. gRPC swallows what its callbacks throw, after which a call would never end.
template <typename Action>
absl::Status CatchExceptions(absl::string_view method, Action action) {
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<Action>>) {
      action();
      return absl::OkStatus();
    } else {
      return action();
    }
  } catch (const std::exception& exception) {
    return ExceptionStatus(method, exception.what());
  } catch (...) {
    return ExceptionStatus(method, "something that is not a std::exception");
  }
}

// Ends a unary call with what `fill` answers, which fills the response.
template <typename Fill>
grpc::ServerUnaryReactor* AnswerCall(grpc::CallbackServerContext* context, absl::string_view method, Fill fill) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(CatchExceptions(method, std::move(fill))));
  return reactor;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_
