#include "client/cli/any_server.h"

#include "client/cpp/server_fleet.h"

namespace hookline::cli {

template <typename Call>
std::invoke_result_t<Call, client::Client&> AnyServer::Ask(Call call) {
  size_t first = 0;
  {
    absl::MutexLock lock(&mutex_);
    first = last_;
  }
  auto answer = call(*clients_[first]);
  for (size_t i = 1; i < clients_.size() && client::IsGone(answer.status()); ++i) {
    const size_t next = (first + i) % clients_.size();
    auto other = call(*clients_[next]);
    if (client::IsGone(other.status())) continue;
    absl::MutexLock lock(&mutex_);
    last_ = next;
    return other;
  }
  return answer;
}

absl::StatusOr<v1::Model> AnyServer::GetModel(const std::string& name) {
  return Ask([&](client::Client& client) { return client.GetModel(name); });
}

absl::StatusOr<v1::TokenizeResponse> AnyServer::Tokenize(const v1::TokenizeRequest& request) {
  return Ask([&](client::Client& client) { return client.Tokenize(request); });
}

absl::StatusOr<v1::EstimateCaptureResponse> AnyServer::EstimateCapture(const v1::CaptureRequest& request) {
  return Ask([&](client::Client& client) { return client.EstimateCapture(request); });
}

}  // namespace hookline::cli
