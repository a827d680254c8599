// Runs a server in front of a fake engine on a free port of the loopback, with a channel to it.
#ifndef HOOKLINE_TESTS_SERVICE_SERVICE_FIXTURE_H_
#define HOOKLINE_TESTS_SERVICE_SERVICE_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/service/server.h"
#include "tests/service/fake_engine.h"

namespace hookline {

class ServiceFixture : public ::testing::Test {
 protected:
  void Serve(FakeEngineOptions engine_options = {}, ServerOptions options = {}) {
    engine_ = std::make_unique<FakeEngine>(std::move(engine_options));
    options.listen = {"127.0.0.1:0"};
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options, engine_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = absl::StrCat("127.0.0.1:", server_->ports()[0]);
    channel_ = NewChannel(address_);
  }

  // Returns a channel that is not shared with others to the same address, as gRPC would do by default.
  static std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  std::unique_ptr<v1::CaptureService::Stub> stub() { return v1::CaptureService::NewStub(channel_); }

  // Requests `rows` rows of each hook point; the fake engine does not look at the tokens.
  static v1::CaptureRequest Request(int64_t rows, const std::vector<std::string>& hook_points = {"a"}) {
    v1::CaptureRequest request;
    *request.mutable_hook_points() = {hook_points.begin(), hook_points.end()};
    request.set_max_activations(rows);
    request.mutable_tokens()->add_sequences()->add_ids(1);
    return request;
  }

  // Returns the first message of a CaptureStream, which has no source.
  static v1::CaptureStreamRequest FirstMessage() {
    v1::CaptureStreamRequest message;
    message.mutable_request()->add_hook_points("a");
    return message;
  }

  static v1::CaptureStreamRequest Tokens(int count) {
    v1::CaptureStreamRequest message;
    v1::TokenSequence& sequence = *message.mutable_tokens()->add_sequences();
    for (int i = 0; i < count; ++i) sequence.add_ids(i);
    return message;
  }

  // More rows than windows hold and sockets buffer.
  static constexpr int64_t kEndless = 100'000'000;

  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<Server> server_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SERVICE_SERVICE_FIXTURE_H_
