// The C++ client's loop that the Python receivers are compared with: rows copied once, into batches of 4096.
//
//   receive_rows HOST:PORT ROWS [wire]    prints GB/s (10^9 bytes of values) and GB for each second of CPU time
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

#include "client/cpp/client.h"
#include "server/base/freed_memory.h"

int main(int argc, char** argv) {
  const bool wire = argc == 4 && std::string(argv[3]) == "wire";
  if (argc != 3 && !wire) {
    std::cerr << "usage: receive_rows HOST:PORT ROWS [wire]\n";
    return 2;
  }
  hookline::KeepFreedMemory();
  constexpr int64_t kBatchRows = 4096;
  hookline::client::ClientOptions options;
  if (wire) options.shared_memory_bytes = 0;
  absl::StatusOr<std::unique_ptr<hookline::client::Client>> client =
      hookline::client::Client::Connect(argv[1], options);
  if (!client.ok()) {
    std::cerr << client.status() << '\n';
    return 1;
  }
  hookline::v1::CaptureRequest request;
  request.add_hook_points("a");
  request.mutable_dataset()->set_name("d");  // no server here looks at it
  request.set_max_activations(std::atoll(argv[2]));

  const std::clock_t cpu_start = std::clock();
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<hookline::client::CaptureCall> call = (*client)->Capture(request);
  std::unique_ptr<float[]> batch;
  int64_t in_batch = 0, bytes = 0;
  while (true) {
    absl::StatusOr<std::optional<hookline::client::CaptureEvent>> event = call->Next();
    if (!event.ok()) {
      std::cerr << event.status() << '\n';
      return 1;
    }
    if (!event->has_value()) break;
    const auto* chunk = std::get_if<hookline::client::Chunk>(&**event);
    if (const auto* started = std::get_if<hookline::v1::CaptureStarted>(&**event)) {
      if ((started->shared_memory_bytes() == 0) != wire) {
        std::cerr << "not the transport that was asked for\n";
        return 1;
      }
    }
    if (chunk == nullptr) continue;
    const int64_t width = chunk->header().width(), row_bytes = width * sizeof(float);
    for (int64_t row = 0; row < chunk->header().rows();) {
      if (in_batch == 0) batch.reset(new float[kBatchRows * width]);  // a batch is somebody's to keep
      const int64_t count = std::min<int64_t>(kBatchRows - in_batch, chunk->header().rows() - row);
      chunk->CopyData(row * row_bytes, count * row_bytes, batch.get() + in_batch * width);
      in_batch = (in_batch + count) % kBatchRows;
      row += count;
    }
    bytes += chunk->data_bytes();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const double cpu_seconds = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  std::cout << gigabytes / seconds.count() << ' ' << gigabytes / cpu_seconds << std::endl;
  return 0;
}
