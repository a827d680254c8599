#include "server/model/load/stages.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/base/checked_math.h"
#include "server/base/status.h"

namespace hookline {
namespace {

bool IsAfterBlocks(absl::string_view weight) {
  for (const absl::string_view part :
       {"lm_head", "embed_out", "project_out", "ln_f", "final_layer_norm", "final_layernorm"}) {
    if (absl::StrContains(weight, part)) return true;
  }
  return weight == "norm.weight" || absl::EndsWith(weight, ".norm.weight");
}

// Returns the bytes of the stages that begin with the blocks `firsts`.
std::vector<int64_t> StageBytes(const std::vector<int64_t>& block_bytes, int64_t before, int64_t after,
                                const std::vector<int>& firsts) {
  std::vector<int64_t> bytes;
  for (size_t s = 0; s < firsts.size(); ++s) {
    const size_t end = s + 1 < firsts.size() ? static_cast<size_t>(firsts[s + 1]) : block_bytes.size();
    int64_t sum = 0;
    for (size_t b = static_cast<size_t>(firsts[s]); b < end; ++b) sum += block_bytes[b];
    bytes.push_back(sum);
  }
  bytes.front() += before;
  bytes.back() += after;
  return bytes;
}

// Returns the first block of each stage, so that no stage has more than `most` bytes and each has a block; nullopt if
// that is not possible.
std::optional<std::vector<int>> FirstsWithin(const std::vector<int64_t>& block_bytes, int64_t before, int64_t after,
                                             int stages, int64_t most) {
  std::vector<int> firsts = {0};
  const int blocks = static_cast<int>(block_bytes.size());
  int64_t used = before;
  for (int b = 0; b < blocks; ++b) {
    const int64_t bytes = block_bytes[static_cast<size_t>(b)] + (b + 1 == blocks ? after : 0);
    const bool begun = b > firsts.back();
    const int stages_left = stages - static_cast<int>(firsts.size());
    // Each remaining stage needs a block.
    const bool must_begin = begun && blocks - b <= stages_left;
    if (stages_left > 0 && begun && (must_begin || used + bytes > most)) {
      firsts.push_back(b);
      used = 0;
    }
    used += bytes;
    if (used > most) return std::nullopt;
  }
  if (static_cast<int>(firsts.size()) != stages) return std::nullopt;
  return firsts;
}

}  // namespace

std::optional<int> BlockOf(absl::string_view weight) {
  for (const absl::string_view part : absl::StrSplit(weight, '.')) {
    int number = 0;
    if (!part.empty() && part.find_first_not_of("0123456789") == absl::string_view::npos &&
        absl::SimpleAtoi(part, &number)) {
      return number;
    }
  }
  return std::nullopt;
}

size_t StageOf(absl::string_view weight, absl::Span<const Stage> stages) {
  const std::optional<int> block = BlockOf(weight);
  if (!block.has_value()) return IsAfterBlocks(weight) ? stages.size() - 1 : 0;
  size_t stage = 0;
  while (stage + 1 < stages.size() && *block >= stages[stage + 1].first_block) ++stage;
  return stage;
}

absl::StatusOr<std::vector<Stage>> SplitBlocks(const std::map<std::string, int64_t>& weights, int blocks,
                                               absl::Span<const std::string> devices) {
  const int count = static_cast<int>(devices.size());
  if (blocks < count) {
    return absl::InvalidArgumentError(absl::StrCat("device ", absl::StrJoin(devices, "+"), ": ", count,
                                                   " stages, but the model has ", blocks, " blocks"));
  }
  std::vector<int64_t> block_bytes(static_cast<size_t>(blocks));
  int64_t before = 0, after = 0, all = 0;
  CheckedInt64 sum = 0;
  for (const auto& [name, bytes] : weights) sum += bytes;
  if (!sum.value().has_value()) return absl::ResourceExhaustedError("the weights take more bytes than can be counted");
  for (const auto& [name, bytes] : weights) {
    const std::optional<int> block = BlockOf(name);
    int64_t& to = block.has_value() && *block < blocks ? block_bytes[static_cast<size_t>(*block)]
                  : IsAfterBlocks(name)                ? after
                                                       : before;
    to += bytes;
    all += bytes;
  }
  // Finds the smallest bound that a split can meet.
  int64_t low = 0, high = all;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (FirstsWithin(block_bytes, before, after, count, middle).has_value()) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const std::vector<int> firsts = *FirstsWithin(block_bytes, before, after, count, high);
  const std::vector<int64_t> bytes = StageBytes(block_bytes, before, after, firsts);
  std::vector<Stage> stages;
  for (size_t s = 0; s < devices.size(); ++s) {
    Stage stage;
    stage.device = devices[s];
    stage.first_block = firsts[s];
    stage.blocks = (s + 1 < devices.size() ? firsts[s + 1] : blocks) - firsts[s];
    stage.weight_bytes = bytes[s];
    stages.push_back(std::move(stage));
  }
  return stages;
}

absl::StatusOr<std::vector<MemoryNeed>> PlaceWeights(const std::string& name,
                                                     const std::map<std::string, int64_t>& weights, int blocks,
                                                     std::vector<Stage>* stages) {
  std::vector<std::string> devices;
  for (const Stage& stage : *stages) devices.push_back(stage.device);
  ASSIGN_OR_RETURN(*stages, SplitBlocks(weights, blocks, devices));
  std::map<std::string, int64_t> by_device;
  for (const Stage& stage : *stages) by_device[stage.device] += stage.weight_bytes;
  std::vector<MemoryNeed> needs;
  for (const auto& [device, bytes] : by_device) needs.push_back({name, device, bytes});
  return needs;
}

void TakeToStages(const std::vector<Stage>& stages, WeightTaker* take) {
  take->set_device_of([stages](const std::string& name) { return at::Device(stages[StageOf(name, stages)].device); });
}

}  // namespace hookline
