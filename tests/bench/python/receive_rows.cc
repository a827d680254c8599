// The C++ client's loop that the Python receivers are compared with: rows copied once, into batches of 4096.
//
//   receive_rows HOST:PORT ROWS    prints GB/s (10^9 bytes of values) and GB for each second of CPU time
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <memory>
#include <optional>
#include <variant>

#include "client/cpp/client.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: receive_rows HOST:PORT ROWS\n";
    return 2;
  }
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  constexpr int64_t kBatchRows = 4096;
  absl::StatusOr<std::unique_ptr<hookline::client::Client>> client = hookline::client::Client::Connect(argv[1]);
  if (!client.ok()) {
    std::cerr << client.status() << '\n';
    return 1;
  }
  hookline::v1::CaptureRequest request;
  request.add_hook_points("blocks.0.hook_resid_post");
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
