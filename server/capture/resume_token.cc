#include "server/capture/resume_token.h"

#include "absl/strings/str_cat.h"
#include "server/base/hash.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr uint8_t kVersion = 1;
constexpr int kNumbers = 7;
// This is above any count that a capture can reach, and small enough that the sum of two cannot overflow.
constexpr uint64_t kMaxNumber = uint64_t{1} << 60;

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

bool ReadVarint(absl::string_view* in, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64 && !in->empty(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(in->front());
    in->remove_prefix(1);
    *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return *value <= kMaxNumber;
  }
  return false;
}

absl::Status Bad(absl::string_view why) {
  return InvalidField("resume_token", absl::StrCat(why,
                                                   "; send the token of the last message received, unchanged, "
                                                   "with the request that it belongs to"));
}

}  // namespace

std::string EncodeResumeToken(const CaptureDigests& digests, const ResumePosition& position) {
  std::string token;
  token.push_back(static_cast<char>(kVersion));
  for (uint64_t digest : {digests.model, digests.source, digests.request}) AppendLittleEndian(digest, 8, &token);
  for (int64_t number : {position.rows, position.sequence, position.sequence_rows, position.group_rows,
                         position.group_hook_points, position.batch_sequence, position.batch_sequences}) {
    AppendVarint(static_cast<uint64_t>(number), &token);
  }
  AppendLittleEndian(Xxh32(token), 4, &token);
  return token;
}

absl::StatusOr<ResumePosition> DecodeResumeToken(absl::string_view token, const CaptureDigests& digests,
                                                 int hook_points) {
  if (token.empty() || static_cast<uint8_t>(token[0]) != kVersion) return Bad("not a resume token of this version");
  if (token.size() < 1 + 24 + kNumbers + 4) return Bad("damaged: too short");
  absl::string_view body = token.substr(0, token.size() - 4);
  if (ReadLittleEndian(token.substr(body.size())) != Xxh32(body)) {
    return Bad("damaged: its checksum differs");
  }
  body.remove_prefix(1);
  const uint64_t expected[] = {digests.model, digests.source, digests.request};
  constexpr absl::string_view kNames[] = {
      "another model (its weights differ)",
      "another source (dataset or recording, its tokens, its cut, its order, or the kind of source differ)",
      "another request (hook points, budgets, dtype, top_k, selection, provenance, "
      "message size, statistics_only or deterministic differ)"};
  for (int i = 0; i < 3; ++i, body.remove_prefix(8)) {
    if (ReadLittleEndian(body.substr(0, 8)) != expected[i]) return Bad(absl::StrCat("belongs to ", kNames[i]));
  }
  int64_t numbers[kNumbers];
  for (int64_t& number : numbers) {
    uint64_t value;
    if (!ReadVarint(&body, &value)) return Bad("damaged: a number in it is malformed");
    number = static_cast<int64_t>(value);
  }
  ResumePosition position;
  position.rows = numbers[0];
  position.sequence = numbers[1];
  position.sequence_rows = numbers[2];
  position.group_rows = numbers[3];
  position.group_hook_points = numbers[4];
  position.batch_sequence = numbers[5];
  position.batch_sequences = numbers[6];
  if (!body.empty() || position.group_hook_points > hook_points ||
      (position.group_rows == 0) != (position.group_hook_points == 0) || position.batch_sequence > position.sequence) {
    return Bad("damaged: its numbers contradict each other");
  }
  return position;
}

}  // namespace hookline
