// The input is one byte that chooses a message, and the message as a client sends it.
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "server/service/wire/request_parser.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes == 0) return 0;
  const hookline::TokenLimits limits = {int64_t{1} << 20, int64_t{1} << 16};
  const grpc::Slice slice(data + 1, bytes - 1);
  const grpc::ByteBuffer message(&slice, 1);
  switch (data[0] % 4) {
    case 0:
      hookline::CheckMessage(hookline::ParseCaptureRequest(message, limits).status());
      break;
    case 1:
      hookline::CheckMessage(hookline::ParsePersistRequest(message, limits).status());
      break;
    case 2:
      hookline::CheckMessage(hookline::ParseEstimateCaptureRequest(message, limits).status());
      break;
    default:
      hookline::CheckMessage(hookline::ParseCaptureStreamRequest(message, limits).status());
  }
  return 0;
}
