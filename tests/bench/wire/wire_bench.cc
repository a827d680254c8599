// How fast rows reach a C++ client: Hookline's wire against a plain TCP loop and against plain protobuf messages, all
// on the loopback, one after another in each round, the best round of each. Both ends are in this process, malloc told
// to keep freed memory mapped.
//
//   build/release/bin/wire_bench [ROUNDS [MEGABYTES_PER_ROUND]]
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/service/server.h"
#include "tests/service/fake_engine.h"

namespace hookline {
namespace {

constexpr int64_t kWidth = 768;
constexpr int64_t kRowBytes = kWidth * sizeof(float);
constexpr int64_t kMessageBytes = int64_t{1} << 20;
constexpr int64_t kRowsPerMessage = (kMessageBytes - 256) / kRowBytes;
constexpr int64_t kDataBytes = kRowsPerMessage * kRowBytes;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "wire_bench: %s\n", why.c_str());
  std::exit(1);
}

double GigabytesPerSecond(int64_t bytes, absl::Time start) {
  return static_cast<double>(bytes) / 1e9 / absl::ToDoubleSeconds(absl::Now() - start);
}

// Rows of the fake engine, through the server's encoder and the C++ client, copied once into the reader's buffer.
class Hookline {
 public:
  Hookline() {
    FakeEngineOptions options;
    options.width = kWidth;
    options.write_values = false;
    engine_ = std::make_unique<FakeEngine>(std::move(options));
    ServerOptions server_options;
    server_options.listen = {"127.0.0.1:0"};
    auto server = Server::Start(server_options, engine_.get());
    if (!server.ok()) Fail(server.status().ToString());
    server_ = *std::move(server);
    auto client = client::Client::Connect(absl::StrCat("127.0.0.1:", server_->ports()[0]));
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
      if (auto* chunk = std::get_if<client::Chunk>(&**event)) {
        chunk->CopyData(0, chunk->data_bytes(), buffer_.data());
        bytes += chunk->data_bytes();
      }
    }
    if (bytes != messages * kDataBytes) Fail(absl::StrCat("received ", bytes, " bytes"));
    return GigabytesPerSecond(bytes, start);
  }

 private:
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<client::Client> client_;
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kDataBytes);
};

// The same messages as protobuf's generated code sends and reads them.
class PlainProtobuf {
 public:
  PlainProtobuf() : rows_(kDataBytes, 'r') {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    service_.rows = &rows_;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) Fail("the plain server does not start");
    stub_ = v1::CaptureService::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }

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
        chunk.set_data(*rows);
        writer->Write(response);
      }
      return grpc::Status::OK;
    }

    const std::string* rows = nullptr;
  };

  std::string rows_;
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kDataBytes);
  Service service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::CaptureService::Stub> stub_;
};

// What the machine can do: send from eight buffers in turn, receive into one.
class PlainTcp {
 public:
  PlainTcp() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    sending_ = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
        connect(sending_, reinterpret_cast<sockaddr*>(&address), length) != 0) {
      Fail("no loopback connection");
    }
    receiving_ = accept(listener, nullptr, nullptr);
    close(listener);
    const int on = 1;
    setsockopt(sending_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (auto& buffer : sent_) buffer.assign(kDataBytes, 's');
  }

  ~PlainTcp() {
    close(sending_);
    close(receiving_);
  }

  double Measure(int64_t messages) {
    const absl::Time start = absl::Now();
    std::thread sender([this, messages] {
      for (int64_t i = 0; i < messages; ++i) {
        const std::vector<uint8_t>& buffer = sent_[i % 8];
        for (int64_t at = 0; at < kDataBytes;) {
          const ssize_t sent = send(sending_, buffer.data() + at, kDataBytes - at, MSG_NOSIGNAL);
          if (sent <= 0) Fail("send failed");
          at += sent;
        }
      }
    });
    for (int64_t i = 0; i < messages; ++i) {
      for (int64_t at = 0; at < kDataBytes;) {
        const ssize_t received = recv(receiving_, received_.data() + at, kDataBytes - at, 0);
        if (received <= 0) Fail("recv failed");
        at += received;
      }
    }
    sender.join();
    return GigabytesPerSecond(messages * kDataBytes, start);
  }

 private:
  int sending_;
  int receiving_;
  std::vector<uint8_t> sent_[8];
  std::vector<uint8_t> received_ = std::vector<uint8_t>(kDataBytes);
};

void Run(int rounds, int64_t megabytes) {
  const int64_t messages = megabytes * 1'000'000 / kDataBytes;
  Hookline hookline;
  PlainProtobuf protobuf;
  PlainTcp tcp;
  // Once each so that memory is there.
  hookline.Measure(messages / 4);
  protobuf.Measure(messages / 4);
  tcp.Measure(messages / 4);
  double best_hookline = 0;
  double best_protobuf = 0;
  double best_tcp = 0;
  for (int round = 0; round < rounds; ++round) {
    const double hookline_rate = hookline.Measure(messages);
    const double tcp_rate = tcp.Measure(messages);
    const double protobuf_rate = protobuf.Measure(messages);
    std::printf("round %d: hookline %.2f, tcp %.2f, protobuf %.2f GB/s\n", round + 1, hookline_rate, tcp_rate,
                protobuf_rate);
    best_hookline = std::max(best_hookline, hookline_rate);
    best_protobuf = std::max(best_protobuf, protobuf_rate);
    best_tcp = std::max(best_tcp, tcp_rate);
  }
  char host[64] = "";
  gethostname(host, sizeof host - 1);
  std::printf(
      "%s, %u cores, %ld-byte messages, best of %d: hookline %.2f GB/s; to tcp (%.2f) %.2f, to protobuf (%.2f) %.2f\n",
      host, std::thread::hardware_concurrency(), static_cast<long>(kDataBytes), rounds, best_hookline, best_tcp,
      best_hookline / best_tcp, best_protobuf, best_hookline / best_protobuf);
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  hookline::Run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 5, argc > 2 ? std::max(10, std::atoi(argv[2])) : 1000);
  return 0;
}
