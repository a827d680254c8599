// The input is a server's message, which the C++ client reads. Its first byte says where the message is cut in
// two slices.
#include <algorithm>
#include <variant>
#include <vector>

#include "client/cpp/capture_response.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes == 0) return 0;
  const size_t cut = std::min<size_t>(data[0], bytes - 1);
  std::vector<grpc::Slice> slices;
  slices.emplace_back(data + 1, cut);
  slices.emplace_back(data + 1 + cut, bytes - 1 - cut);
  const auto event = hookline::client::ParseCaptureResponse(std::move(slices));
  hookline::CheckMessage(event.status());
  if (!event.ok()) return 0;
  if (const auto* chunk = std::get_if<hookline::client::Chunk>(&*event); chunk != nullptr) {
    std::vector<uint8_t> values(static_cast<size_t>(chunk->data_bytes()));
    chunk->CopyData(0, chunk->data_bytes(), values.data());
  }
  return 0;
}
