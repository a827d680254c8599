#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "gtest/gtest.h"
#include "hookline/v1/capture_service.grpc.pb.h"

namespace hookline::client {
namespace {

constexpr int kWidth = 64 << 10;
constexpr int kChunks = 60;  // 15 MB: more than the buffers between server and client hold

// Grants one hook point and sends kChunks rows of it.
class Rows final : public v1::CaptureService::Service {
  grpc::Status Capture(grpc::ServerContext* /*context*/, const v1::CaptureRequest* /*request*/,
                       grpc::ServerWriter<v1::CaptureResponse>* writer) override {
    v1::CaptureResponse response;
    v1::CaptureStarted& started = *response.mutable_started();
    started.set_dtype(v1::DTYPE_FLOAT32);
    v1::HookPointGrant& grant = *started.add_hook_points();
    grant.set_hook_point("a");
    grant.set_width(kWidth);
    grant.set_max_activations(kChunks);
    writer->Write(response);
    for (int i = 0; i < kChunks; ++i) {
      v1::ActivationChunk& chunk = *response.mutable_chunk();
      chunk.set_hook_point("a");
      chunk.set_first_row(i);
      chunk.set_rows(1);
      chunk.set_width(kWidth);
      chunk.set_dtype(v1::DTYPE_FLOAT32);
      chunk.set_data(std::string(size_t{kWidth} * 4, 'x'));
      if (!writer->Write(response)) return grpc::Status::CANCELLED;
    }
    response.mutable_summary()->set_stop_reason(v1::STOP_REASON_SOURCE_ENDED);
    writer->Write(response);
    return grpc::Status::OK;
  }
};

// Runs in a process of its own, which the next test starts: threads of a server in this process would read from the
// client's connection, too.
TEST(PauseServer, DISABLED_ServesUntilItsInputEnds) {
  Rows rows;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.RegisterService(&rows);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::fprintf(stderr, "port %d\n", port);
  while (std::getchar() != EOF) {
  }
  server->Shutdown(std::chrono::system_clock::now());
}

// A server process, which ends with this object.
class ServerProcess {
 public:
  ServerProcess() {
    int input[2], errors[2];
    if (pipe2(input, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(input[0], STDIN_FILENO);
      dup2(errors[1], STDERR_FILENO);
      execl("/proc/self/exe", "server", "--gtest_also_run_disabled_tests", "--gtest_filter=PauseServer.*", nullptr);
      _exit(1);
    }
    close(input[0]);
    close(errors[1]);
    input_ = input[1];
    FILE* const lines = fdopen(errors[0], "r");
    if (std::fscanf(lines, "port %d", &port_) != 1) port_ = 0;
    std::fclose(lines);
  }
  ~ServerProcess() {
    close(input_);
    waitpid(pid_, nullptr, 0);
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  int port() const { return port_; }

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int port_ = 0;
};

// Reads the capture to its end, and calls `pause` after its second chunk. Returns the number of chunks.
int ReadChunks(CaptureCall& call, const std::function<void()>& pause) {
  int chunks = 0;
  while (true) {
    absl::StatusOr<std::optional<CaptureEvent>> event = call.Next();
    EXPECT_TRUE(event.ok()) << event.status();
    if (!event.ok() || !event->has_value()) return chunks;
    if (std::holds_alternative<Chunk>(**event) && ++chunks == 2) pause();
  }
}

TEST(PauseTest, ACallerMayPauseForLongerThanTheServersKeepalive) {
  const ServerProcess server;
  ClientOptions options;
  options.shared_memory_bytes = 0;
  const auto client = Client::Connect(absl::StrCat("127.0.0.1:", server.port()), options);
  ASSERT_TRUE(client.ok()) << client.status();
  const std::unique_ptr<CaptureCall> call = (*client)->Capture({});
  const int chunks = ReadChunks(*call, [&client] {
    // A call of the same connection ends, which leaves the paused one as it is.
    EXPECT_EQ(ReadChunks(*(*client)->Capture({}), [] {}), kChunks);
    // This sleep is the pause itself; it waits for nothing.
    std::this_thread::sleep_for(std::chrono::seconds(3));
  });
  EXPECT_EQ(chunks, kChunks);
}

}  // namespace
}  // namespace hookline::client
