// The input is a pickle: of a state dict, as torch.save wrote it before it wrote archives, or of a tokenizer.
#include "server/formats/unpickler.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const absl::Span<const uint8_t> input(data, bytes);
  hookline::CheckMessage(hookline::UnpickleStateDict(input).status());
  hookline::CheckMessage(hookline::UnpickleLegacyHead(input).status());
  hookline::CheckMessage(hookline::UnpickleEncoding(input).status());
  return 0;
}
