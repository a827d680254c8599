// Measures how fast rows reach a C++ client: through shared memory and over the wire, against a plain TCP loop and
// plain protobuf messages, all on the loopback. They run one after another in each round, and ratios are medians over
// the rounds. Each sender is a process of its own, which sends from eight buffers in turn; malloc keeps freed memory
// mapped in all of them.
//
//   build/release/bin/wire_bench [ROUNDS [MEGABYTES_PER_ROUND]]
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/base/freed_memory.h"
#include "server/service/server.h"
#include "spdlog/spdlog.h"
#include "tests/service/fake_engine.h"
#include "tests/support/loopback.h"

namespace hookline {
namespace {

constexpr int64_t kWidth = 768;
constexpr int64_t kRowBytes = kWidth * sizeof(float);
constexpr int64_t kMessageBytes = int64_t{1} << 20;
constexpr int64_t kRowsPerMessage = (kMessageBytes - 256) / kRowBytes;
constexpr int64_t kDataBytes = kRowsPerMessage * kRowBytes;
constexpr int64_t kBuffers = 8;  // as many as the fake engine's window has slabs

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "wire_bench: %s\n", why.c_str());
  std::exit(1);
}

double GigabytesPerSecond(int64_t bytes, absl::Time start) {
  return static_cast<double>(bytes) / 1e9 / absl::ToDoubleSeconds(absl::Now() - start);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A process that sends: `serve` starts listening and returns the port. The process ends with this object.
class Sender {
 public:
  explicit Sender(const std::function<int()>& serve) {
    int to_parent[2];
    int to_child[2];
    if (pipe(to_parent) != 0 || pipe(to_child) != 0) Fail("no pipe");
    child_ = fork();
    if (child_ < 0) Fail("no process");
    if (child_ == 0) {
      close(to_child[1]);
      const int port = serve();
      char end;
      if (write(to_parent[1], &port, sizeof port) == sizeof port) (void)!read(to_child[0], &end, 1);
      std::_Exit(0);
    }
    close(to_child[0]);
    alive_ = to_child[1];
    if (read(to_parent[0], &port_, sizeof port_) != sizeof port_) Fail("a sender did not start");
    close(to_parent[0]);
    close(to_parent[1]);
  }

  ~Sender() {
    close(alive_);
    waitpid(child_, nullptr, 0);
  }

  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  pid_t child_;
  int alive_;
  int port_ = 0;
};

// Receives rows of the fake engine through the server's encoder and the C++ client, and copies them once, into the
// reader's buffer.
class Hookline {
 public:
  static int Serve() {
    FakeEngineOptions options;
    options.width = kWidth;
    options.write_values = false;
    auto* engine = new FakeEngine(std::move(options));
    ServerOptions server_options;
    server_options.listen = {"127.0.0.1:0"};
    auto server = Server::Start(server_options, engine);
    if (!server.ok()) Fail(server.status().ToString());
    return server->release()->ports()[0];
  }

  // If `shared_memory_bytes` is 0, values come over the wire.
  Hookline(const Sender& sender, int64_t shared_memory_bytes) : shared_memory_bytes_(shared_memory_bytes) {
    client::ClientOptions options;
    options.shared_memory_bytes = shared_memory_bytes;
    auto client = client::Client::Connect(sender.address(), options);
    if (!client.ok()) Fail(client.status().ToString());
    client_ = *std::move(client);
  }

  double Measure(int64_t messages) {
    v1::CaptureRequest request;
    request.add_hook_points("a");
    request.set_max_activations(messages * kRowsPerMessage);
    request.mutable_tokens()->add_sequences()->add_ids(1);
    int64_t bytes = 0;
    const absl::Time start = absl::Now();
    auto call = client_->Capture(request);
    while (true) {
      auto event = call->Next();
      if (!event.ok()) Fail(event.status().ToString());
      if (!event->has_value()) break;
      if (auto* started = std::get_if<v1::CaptureStarted>(&**event)) {
        if (started->shared_memory_bytes() != shared_memory_bytes_) Fail("not the transport that was asked for");
      } else if (auto* chunk = std::get_if<client::Chunk>(&**event)) {
        chunk->CopyData(0, chunk->data_bytes(), buffer_.data());
        bytes += chunk->data_bytes();
      }
    }
    if (bytes != messages * kDataBytes) Fail(absl::StrCat("received ", bytes, " bytes"));
    return GigabytesPerSecond(bytes, start);
  }

 private:
  const int64_t shared_memory_bytes_;
  std::unique_ptr<client::Client> client_;
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kDataBytes);
};

// Sends and reads the same messages with protobuf's generated code.
class PlainProtobuf {
 public:
  static int Serve() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(new Service);
    if (builder.BuildAndStart().release() == nullptr) Fail("the plain server does not start");
    return port;
  }

  explicit PlainProtobuf(const Sender& sender)
      : stub_(v1::CaptureService::NewStub(grpc::CreateChannel(sender.address(), grpc::InsecureChannelCredentials()))) {}

  double Measure(int64_t messages) {
    v1::CaptureRequest request;
    request.set_max_activations(messages);
    int64_t bytes = 0;
    const absl::Time start = absl::Now();
    grpc::ClientContext context;
    auto reader = stub_->Capture(&context, request);
    v1::CaptureResponse response;
    while (reader->Read(&response)) {
      std::memcpy(buffer_.data(), response.chunk().data().data(), response.chunk().data().size());
      bytes += static_cast<int64_t>(response.chunk().data().size());
    }
    if (grpc::Status status = reader->Finish(); !status.ok()) Fail(status.error_message());
    if (bytes != messages * kDataBytes) Fail(absl::StrCat("received ", bytes, " bytes"));
    return GigabytesPerSecond(bytes, start);
  }

 private:
  struct Service final : v1::CaptureService::Service {
    grpc::Status Capture(grpc::ServerContext*, const v1::CaptureRequest* request,
                         grpc::ServerWriter<v1::CaptureResponse>* writer) override {
      for (int64_t i = 0; i < request->max_activations(); ++i) {
        v1::CaptureResponse response;
        v1::ActivationChunk& chunk = *response.mutable_chunk();
        chunk.set_hook_point("a");
        chunk.set_first_row(i * kRowsPerMessage);
        chunk.set_rows(kRowsPerMessage);
        chunk.set_width(kWidth);
        chunk.set_dtype(v1::DTYPE_FLOAT32);
        chunk.set_data(rows[i % kBuffers]);
        writer->Write(response);
      }
      return grpc::Status::OK;
    }

    const std::vector<std::string> rows = std::vector<std::string>(kBuffers, std::string(kDataBytes, 'r'));
  };

  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kDataBytes);
  std::unique_ptr<v1::CaptureService::Stub> stub_;
};

// Shows the most that the machine can do: receives into one buffer.
class PlainTcp {
 public:
  static int Serve() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    socklen_t length = sizeof address;
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      Fail("no loopback port");
    }
    std::thread([listener] { Send(accept(listener, nullptr, nullptr)); }).detach();
    return ntohs(address.sin_port);
  }

  explicit PlainTcp(const Sender& sender) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = Loopback(sender.port());
    if (connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Fail("no connection");
  }
  ~PlainTcp() { close(socket_); }

  double Measure(int64_t messages) {
    const absl::Time start = absl::Now();
    if (send(socket_, &messages, sizeof messages, 0) != sizeof messages) Fail("send failed");
    for (int64_t i = 0; i < messages; ++i) {
      for (int64_t at = 0; at < kDataBytes;) {
        const ssize_t received = recv(socket_, buffer_.data() + at, kDataBytes - at, 0);
        if (received <= 0) Fail("recv failed");
        at += received;
      }
    }
    return GigabytesPerSecond(messages * kDataBytes, start);
  }

 private:
  // Reads numbers, and sends as many messages as each says.
  static void Send(int socket) {
    std::vector<std::vector<uint8_t>> buffers(kBuffers, std::vector<uint8_t>(kDataBytes, 's'));
    int64_t messages;
    while (recv(socket, &messages, sizeof messages, MSG_WAITALL) == sizeof messages) {
      for (int64_t i = 0; i < messages; ++i) {
        for (int64_t at = 0; at < kDataBytes;) {
          const ssize_t sent = send(socket, buffers[i % kBuffers].data() + at, kDataBytes - at, MSG_NOSIGNAL);
          if (sent <= 0) return;
          at += sent;
        }
      }
    }
  }

  const int socket_;
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kDataBytes);
};

void Run(int rounds, int64_t megabytes) {
  const int64_t messages = megabytes * 1'000'000 / kDataBytes;
  // All processes start before any thread of gRPC.
  const Sender hookline_sender(&Hookline::Serve);
  const Sender protobuf_sender(&PlainProtobuf::Serve);
  const Sender tcp_sender(&PlainTcp::Serve);
  Hookline shared(hookline_sender, client::ClientOptions().shared_memory_bytes);
  Hookline wire(hookline_sender, 0);
  PlainProtobuf protobuf(protobuf_sender);
  PlainTcp tcp(tcp_sender);
  // Each way runs once first, so that its memory is mapped.
  shared.Measure(messages / 4);
  wire.Measure(messages / 4);
  protobuf.Measure(messages / 4);
  tcp.Measure(messages / 4);
  struct Transport {
    const char* name;
    Hookline* client;
    std::vector<double> rates, to_tcp, to_protobuf;
  };
  Transport transports[] = {{"shared memory", &shared, {}, {}, {}}, {"wire", &wire, {}, {}, {}}};
  for (int round = 0; round < rounds; ++round) {
    std::printf("round %d:", round + 1);
    for (Transport& transport : transports) {
      transport.rates.push_back(transport.client->Measure(messages));
      std::printf(" %s %.2f,", transport.name, transport.rates.back());
    }
    const double tcp_rate = tcp.Measure(messages);
    const double protobuf_rate = protobuf.Measure(messages);
    std::printf(" tcp %.2f, protobuf %.2f GB/s\n", tcp_rate, protobuf_rate);
    for (Transport& transport : transports) {
      transport.to_tcp.push_back(transport.rates.back() / tcp_rate);
      transport.to_protobuf.push_back(transport.rates.back() / protobuf_rate);
    }
  }
  char host[64] = "";
  gethostname(host, sizeof host - 1);
  std::printf("%s, %u cores, %ld-byte messages, medians of %d rounds\n", host, std::thread::hardware_concurrency(),
              static_cast<long>(kDataBytes), rounds);
  for (const Transport& transport : transports) {
    std::printf("%s: %.2f GB/s; to tcp %.2f, to protobuf %.2f\n", transport.name, Median(transport.rates),
                Median(transport.to_tcp), Median(transport.to_protobuf));
  }
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) {
  hookline::KeepFreedMemory();
  spdlog::set_level(spdlog::level::warn);  // without a line for each call
  hookline::Run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 5, argc > 2 ? std::max(10, std::atoi(argv[2])) : 1000);
  return 0;
}
