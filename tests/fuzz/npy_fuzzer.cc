// The input is a dataset in NumPy's format.
#include <vector>

#include "server/dataset/dataset.h"
#include "server/formats/npy.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static hookline::InputInMemory file;
  file.Set({data, bytes});
  const bool is_npy = hookline::IsNpy(hookline::AsText(data, bytes));
  const auto dataset = hookline::Dataset::Open("input", is_npy ? file.path() : file.path() + ":uint16");
  hookline::CheckMessage(dataset.status());
  if (!dataset.ok()) return 0;
  for (const int64_t length : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{1} << 30}) {
    const auto cut = (*dataset)->CutInto(length);
    if (!cut.ok() || cut->sequence_count == 0) continue;
    std::vector<uint32_t> ids(static_cast<size_t>(cut->sequence_length));
    for (const int64_t sequence : {int64_t{0}, cut->sequence_count - 1}) {
      if (!(*dataset)->ReadSequence(sequence, int64_t{1} << 32, absl::MakeSpan(ids)).ok()) __builtin_trap();
    }
  }
  return 0;
}
