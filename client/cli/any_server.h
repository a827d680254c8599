// Sends a request to one of several servers that hold the same model and so answer it alike.
#ifndef HOOKLINE_CLIENT_CLI_ANY_SERVER_H_
#define HOOKLINE_CLIENT_CLI_ANY_SERVER_H_

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/client.h"

namespace hookline::cli {

// Asks the server that answered last, or the next one if that server is gone. If all are gone, returns the error of the
// first one asked. Thread-safe.
class AnyServer {
 public:
  // `clients` has at least one client; all must outlive this object.
  explicit AnyServer(std::vector<client::Client*> clients) : clients_(std::move(clients)) {}

  absl::StatusOr<v1::Model> GetModel(const std::string& name);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::EstimateCaptureResponse> EstimateCapture(const v1::CaptureRequest& request);

 private:
  template <typename Call>
  std::invoke_result_t<Call, client::Client&> Ask(Call call) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<client::Client*> clients_;
  absl::Mutex mutex_;
  size_t last_ ABSL_GUARDED_BY(mutex_) = 0;  // index of the server that answered last
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_ANY_SERVER_H_
