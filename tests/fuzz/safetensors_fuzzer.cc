// The input is a safetensors file. If its first bit says so, the length of the header is corrected, so that changes of
// the header alone get past that check.
#include <algorithm>
#include <cstring>
#include <vector>

#include "server/formats/safetensors.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static hookline::InputInMemory file;
  if (bytes < 9) return 0;
  std::vector<uint8_t> input(data + 1, data + bytes);
  if (data[0] & 1) {
    const auto* end = static_cast<const uint8_t*>(memrchr(input.data() + 8, '}', input.size() - 8));
    const uint64_t header = end == nullptr ? 0 : static_cast<uint64_t>(end + 1 - input.data()) - 8;
    std::memcpy(input.data(), &header, sizeof header);
  }
  file.Set(input);
  const auto opened = hookline::InputFile::Open(file.path());
  if (!opened.ok()) return 0;
  const auto tensors = hookline::ReadSafetensorsHeader(**opened);
  hookline::CheckMessage(tensors.status());
  if (!tensors.ok()) return 0;
  for (const hookline::SafetensorsTensor& tensor : *tensors) {
    if (tensor.offset < 0 || tensor.bytes < 0 || tensor.offset + tensor.bytes > static_cast<int64_t>(input.size())) {
      __builtin_trap();
    }
  }
  return 0;
}
