// The input is a resume token. It is decoded as it is, and with the right digests and checksum.
#include <cstring>
#include <string>

#include "server/capture/resume_token.h"
#include "tests/fuzz/input.h"
#include "xxhash.h"

namespace {

constexpr int kHookPoints = 8;
constexpr hookline::CaptureDigests kDigests = {1, 2, 3};

void Decode(absl::string_view token) {
  const auto position = hookline::DecodeResumeToken(token, kDigests, kHookPoints);
  hookline::CheckMessage(position.status());
  if (!position.ok()) return;
  if (position->rows < 0 || position->sequence < 0 || position->sequence_rows < 0 || position->group_rows < 0 ||
      position->batch_sequence < 0 || position->batch_sequences < 0 || position->group_hook_points < 0 ||
      position->group_hook_points > kHookPoints) {
    __builtin_trap();
  }
  const std::string encoded = hookline::EncodeResumeToken(kDigests, *position);
  if (!hookline::DecodeResumeToken(encoded, kDigests, kHookPoints).ok()) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  std::string token(hookline::AsText(data, bytes));
  Decode(token);
  // The digests follow the byte of the version.
  const std::string right = hookline::EncodeResumeToken(kDigests, {});
  if (token.size() >= 1 + sizeof kDigests) std::memcpy(token.data() + 1, right.data() + 1, sizeof kDigests);
  const uint32_t checksum = XXH32(token.data(), token.size(), 0);
  token.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
  Decode(token);
  return 0;
}
