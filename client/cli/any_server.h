// Asks any of several servers for what they answer alike, since they hold the same model.
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

// Asks the server that answered last and, where that is gone, the next one; the error of the first where all are.
// Thread-safe.
class AnyServer {
 public:
  // At least one, which must outlive this.
  explicit AnyServer(std::vector<client::Client*> clients) : clients_(std::move(clients)) {}

  absl::StatusOr<v1::Model> GetModel(const std::string& name);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::EstimateCaptureResponse> EstimateCapture(const v1::CaptureRequest& request);

 private:
  template <typename Call>
  std::invoke_result_t<Call, client::Client&> Ask(Call call) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<client::Client*> clients_;
  absl::Mutex mutex_;
  size_t last_ ABSL_GUARDED_BY(mutex_) = 0;  // the server that answered
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_ANY_SERVER_H_
