// Runs the C++ client's loop, with which the Python receivers are compared: rows are copied once, into batches of 4096.
//
//   receive_rows HOST:PORT ROWS WARM_ROWS [wire]
//
// Receives WARM_ROWS rows, then ROWS rows, for which it prints GB/s (10^9 bytes of values) and GB per second of
// CPU time.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "client/cpp/client.h"
#include "server/base/freed_memory.h"
#include "server/base/status.h"

namespace {

using hookline::client::CaptureCall;
using hookline::client::CaptureEvent;
using hookline::client::Client;

constexpr int64_t kBatchRows = 4096;
constexpr int64_t kWidth = 768;

enum class Transport { kSharedMemory, kWire };

absl::Status Receive(Client& client, Transport transport, int64_t rows) {
  hookline::v1::CaptureRequest request;
  request.add_hook_points("a");
  request.mutable_dataset()->set_name("d");  // the benchmark's servers ignore it
  request.set_max_activations(rows);
  std::unique_ptr<CaptureCall> call = client.Capture(request);
  std::unique_ptr<float[]> batch;
  int64_t received = 0;
  while (true) {
    ASSIGN_OR_RETURN(std::optional<CaptureEvent> event, call->Next());
    if (!event.has_value()) break;
    if (const auto* started = std::get_if<hookline::v1::CaptureStarted>(&*event)) {
      if ((started->shared_memory_bytes() == 0) != (transport == Transport::kWire)) {
        return absl::InternalError("not the transport that was asked for");
      }
    }
    const auto* chunk = std::get_if<hookline::client::Chunk>(&*event);
    if (chunk == nullptr) continue;
    constexpr int64_t kRowBytes = kWidth * sizeof(float);
    for (int64_t row = 0; row < chunk->header().rows();) {
      const int64_t in_batch = received % kBatchRows;
      if (in_batch == 0) batch.reset(new float[kBatchRows * kWidth]);  // each batch owns its memory
      const int64_t count = std::min<int64_t>(kBatchRows - in_batch, chunk->header().rows() - row);
      chunk->CopyData(row * kRowBytes, count * kRowBytes, batch.get() + in_batch * kWidth);
      received += count;
      row += count;
    }
  }
  return received == rows ? absl::OkStatus() : absl::InternalError("not as many rows as were asked for");
}

absl::Status Measure(const std::string& address, Transport transport, int64_t rows, int64_t warm_rows) {
  hookline::client::ClientOptions options;
  if (transport == Transport::kWire) options.shared_memory_bytes = 0;
  ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect(address, options));
  RETURN_IF_ERROR(Receive(*client, transport, warm_rows));
  const std::clock_t cpu_start = std::clock();
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(Receive(*client, transport, rows));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const double cpu_seconds = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const double gigabytes = static_cast<double>(rows * kWidth * sizeof(float)) / 1e9;
  std::cout << gigabytes / seconds.count() << ' ' << gigabytes / cpu_seconds << std::endl;
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const bool wire = argc == 5 && std::string(argv[4]) == "wire";
  if (argc != 4 && !wire) {
    std::cerr << "usage: receive_rows HOST:PORT ROWS WARM_ROWS [wire]\n";
    return 2;
  }
  hookline::KeepFreedMemory();
  const absl::Status status =
      Measure(argv[1], wire ? Transport::kWire : Transport::kSharedMemory, std::atoll(argv[2]), std::atoll(argv[3]));
  if (status.ok()) return 0;
  std::cerr << status << '\n';
  return 1;
}
