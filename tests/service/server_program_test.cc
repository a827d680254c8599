// Tests the program itself, as an operator meets it.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

// A running hookline-server whose standard error this reads.
class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    int log[2];
    EXPECT_EQ(pipe2(log, O_CLOEXEC), 0);
    arguments.insert(arguments.begin(), HOOKLINE_SERVER);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(log[1], STDERR_FILENO);
      execv(HOOKLINE_SERVER, argv.data());
      std::_Exit(127);
    }
    close(log[1]);
    log_.reset(fdopen(log[0], "r"));
  }

  ~Program() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  // Reads the log up to a line that contains `text`. Returns the line; "" if the program ended before.
  std::string WaitForLog(const std::string& text) {
    char line[4096];
    while (std::fgets(line, sizeof line, log_.get()) != nullptr) {
      log_so_far_ += line;
      if (std::string(line).find(text) != std::string::npos) return line;
    }
    return "";
  }

  // Waits for the server to listen. Returns its port.
  int WaitForPort() {
    const std::string line = WaitForLog("listening on");
    EXPECT_NE(line, "") << log_so_far_;
    int port = 0;
    const size_t at = line.find("(port ");
    if (at != std::string::npos) {
      EXPECT_TRUE(absl::SimpleAtoi(line.substr(at + 6, line.find(')') - at - 6), &port)) << line;
    }
    return port;
  }

  void Signal(int signal) { kill(pid_, signal); }

  // Returns the status that waitpid gives.
  int Wait() {
    WaitForLog("\1");  // no line contains this
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return status;
  }

  const std::string& log() const { return log_so_far_; }

 private:
  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };

  pid_t pid_;
  std::unique_ptr<FILE, Close> log_;
  std::string log_so_far_;
};

const char kModel[] = HOOKLINE_FIXTURES "/nanochat/A-mha";

std::vector<std::string> Arguments(std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {std::string("--model=demo=") + kModel, "--listen=127.0.0.1:0",
                                        "--slab-count=32", "--threads=1", "--device=cpu"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(ServerProgram, ServesACaptureAndEndsWithZeroWhenAskedTo) {
  const std::string port_file = absl::StrCat(::testing::TempDir(), "/server_program_", getpid(), ".port");
  Program program(Arguments({"--port-file=" + port_file, "--metrics-listen=127.0.0.1:0"}));
  const int port = program.WaitForPort();
  auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
  {
    auto stub = v1::CaptureService::NewStub(channel);
    grpc::ClientContext context;
    v1::CaptureRequest request;
    request.add_hook_points("blocks.*.hook_resid_post");
    for (uint32_t id : {256U, 72U, 105U}) {
      if (request.tokens().sequences_size() == 0) request.mutable_tokens()->add_sequences();
      request.mutable_tokens()->mutable_sequences(0)->add_ids(id);
    }
    auto stream = stub->Capture(&context, request);
    v1::CaptureResponse response;
    int64_t rows = 0;
    while (stream->Read(&response)) rows += response.chunk().rows();
    grpc::Status status = stream->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(rows, 4 * 3);
    ASSERT_TRUE(response.has_summary());
  }
  program.Signal(SIGTERM);
  const int status = program.Wait();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << program.log();
  // The file was written once the port was open.
  std::string written;
  std::getline(std::ifstream(port_file), written);
  EXPECT_EQ(written, absl::StrCat(port));
  std::remove(port_file.c_str());
}

TEST(ServerProgram, EndsAtOnceAtASecondSignal) {
  Program program(Arguments({"--drain-timeout=1h"}));
  auto stub = v1::CaptureService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", program.WaitForPort()), grpc::InsecureChannelCredentials()));
  // This capture waits for its client for ever.
  grpc::ClientContext context;
  auto stream = stub->CaptureStream(&context);
  v1::CaptureStreamRequest request;
  request.mutable_request()->add_hook_points("hook_embed");
  ASSERT_TRUE(stream->Write(request));
  v1::CaptureResponse response;
  ASSERT_TRUE(stream->Read(&response));
  program.Signal(SIGTERM);
  EXPECT_NE(program.WaitForLog("shutting down gracefully"), "");
  program.Signal(SIGINT);
  const int status = program.Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << program.log();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(ServerProgram, TellsWrongFlagsFromFailures) {
  struct Case {
    std::vector<std::string> arguments;
    int exit_code;
    const char* said;
  };
  Program running(Arguments());
  const std::string taken = absl::StrCat("127.0.0.1:", running.WaitForPort());
  for (const Case& c : std::vector<Case>{
           {{"--no-such-flag"}, 2, "--no-such-flag"},
           {Arguments({"--dtype=float8"}), 2, "float8"},
           {Arguments({"--window-slabs=-1"}), 2, "window_slabs"},
           {Arguments({"--listen=127.0.0.1"}), 2, "--listen: \"127.0.0.1\" has no port"},
           {Arguments({"--metrics-listen=localhost:http"}), 2, "--metrics-listen: \"localhost:http\""},
           {{"--model=/no/such/model"}, 1, "/no/such/model"},
           {Arguments({"--dataset=a=/no/such/file.npy"}), 1, "/no/such/file.npy"},
           {Arguments({"--listen=" + taken}), 1, taken.c_str()},
           {Arguments({"--metrics-listen=" + taken}), 1, taken.c_str()},
           {Arguments({"--port-file=/no/such/folder/port"}), 1, "/no/such/folder/port"},
       }) {
    Program program(c.arguments);
    const int status = program.Wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == c.exit_code) << program.log();
    EXPECT_THAT(program.log(), HasSubstr(c.said));
  }
}

}  // namespace
}  // namespace hookline
