// The input is a pickle: a state dict in torch.save's form before archives, or a tokenizer.
#include "server/formats/unpickler.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const absl::Span<const uint8_t> input(data, bytes);
  hookline::CheckMessage(hookline::UnpickleStateDict(input).status());
  hookline::CheckMessage(hookline::UnpickleLegacyHead(input).status());
  hookline::CheckMessage(hookline::UnpickleEncoding(input).status());
  return 0;
}
