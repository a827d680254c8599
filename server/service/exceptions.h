// Catches exceptions on gRPC's threads, and on those where calls go on.
#ifndef HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_
#define HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_

#include <exception>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"

namespace hookline {

inline absl::Status ExceptionStatus(absl::string_view method, absl::string_view what) {
  spdlog::error("{}: unexpected: {}", std::string(method), std::string(what));
  return absl::InternalError(absl::StrCat(method, ": unexpected: ", what));
}

// Runs `action`, which returns an absl::Status or nothing, and returns that status. An exception becomes INTERNAL and a
// line in the log. gRPC swallows what its callbacks throw, after which a call would never end.
template <typename Action>
absl::Status CatchExceptions(absl::string_view method, const Action& action) {
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<const Action&>>) {
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

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_EXCEPTIONS_H_
