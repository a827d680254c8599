// Connections of different users never share a server, even if one user takes over another user's slot.
#include "server/service/origin_servers.h"

#include <sys/socket.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "grpcpp/create_channel_posix.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "tests/service/fake_engine.h"

namespace hookline {
namespace {

Origin UnixUser(uint32_t uid) { return {OriginKind::kUnix, uid}; }

// These servers know user 1 as a client that may read, and no other client.
class OriginServersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = ::testing::TempDir() + "/origin_servers_clients.json";
    std::ofstream(path) << R"({"clients":[{"name":"one","roles":["read"],"uid":1}]})";
    auto authenticator = Authenticator::Create(path);
    ASSERT_TRUE(authenticator.ok()) << authenticator.status();
    parts_ = std::make_unique<SharedParts>(ServerOptions{}, &engine_, /*recorder_of_all=*/nullptr,
                                           *std::move(authenticator), /*certificates_of_all=*/nullptr);
    servers_ = std::make_unique<OriginServers>(parts_.get(), /*slots=*/2);
  }

  // Makes a connection to the slot, which was prepared before.
  std::shared_ptr<grpc::Channel> Connect(int slot) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    servers_->HandOn(slot, /*listener=*/-1, ends[0]);
    return grpc::CreateInsecureChannelFromFd("test", ends[1]);
  }

  static grpc::StatusCode ListModels(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    return v1::ModelService::NewStub(channel)->ListModels(&context, {}, &response).error_code();
  }

  FakeEngine engine_{FakeEngineOptions{}};
  std::unique_ptr<SharedParts> parts_;
  std::unique_ptr<OriginServers> servers_;
};

TEST_F(OriginServersTest, KnowTheUserOfEachSlot) {
  ASSERT_TRUE(servers_->Prepare(0, UnixUser(1)).ok());
  ASSERT_TRUE(servers_->Prepare(1, UnixUser(2)).ok());
  EXPECT_EQ(ListModels(Connect(0)), grpc::StatusCode::OK);
  EXPECT_EQ(ListModels(Connect(1)), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(OriginServersTest, KeepTheirConnectionsWhileTheUserOfTheSlotStays) {
  ASSERT_TRUE(servers_->Prepare(0, UnixUser(1)).ok());
  const auto first = Connect(0);
  EXPECT_EQ(ListModels(first), grpc::StatusCode::OK);
  ASSERT_TRUE(servers_->Prepare(0, UnixUser(1)).ok());
  EXPECT_EQ(ListModels(first), grpc::StatusCode::OK);
}

TEST_F(OriginServersTest, EndWithTheUserOfTheirSlotSoThatNoCallIsTakenForTheNextUsers) {
  ASSERT_TRUE(servers_->Prepare(0, UnixUser(2)).ok());
  const auto before = Connect(0);
  EXPECT_EQ(ListModels(before), grpc::StatusCode::UNAUTHENTICATED);
  ASSERT_TRUE(servers_->Prepare(0, UnixUser(1)).ok());
  EXPECT_EQ(ListModels(Connect(0)), grpc::StatusCode::OK);
  EXPECT_NE(ListModels(before), grpc::StatusCode::OK);
}

}  // namespace
}  // namespace hookline
