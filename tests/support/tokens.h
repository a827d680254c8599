// Converts token sequences from the form in which tests write them, and back.
#ifndef HOOKLINE_TESTS_SUPPORT_TOKENS_H_
#define HOOKLINE_TESTS_SUPPORT_TOKENS_H_

#include <cstdint>
#include <vector>

#include "server/capture/request.h"

namespace hookline {

inline TokenBatch Tokens(const std::vector<std::vector<uint32_t>>& sequences) {
  TokenBatch batch;
  for (const std::vector<uint32_t>& ids : sequences) {
    for (uint32_t id : ids) batch.Append(id);
    batch.EndSequence();
  }
  return batch;
}

inline std::vector<std::vector<uint32_t>> SequencesOf(const TokenBatch& batch) {
  std::vector<std::vector<uint32_t>> sequences;
  for (int64_t i = 0; i < batch.sequences(); ++i) sequences.emplace_back(batch[i].begin(), batch[i].end());
  return sequences;
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_TOKENS_H_
