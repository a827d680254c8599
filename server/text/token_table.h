// The spelling of each token of a vocabulary.
#ifndef HOOKLINE_SERVER_TEXT_TOKEN_TABLE_H_
#define HOOKLINE_SERVER_TEXT_TOKEN_TABLE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace hookline {

// A row carries at most this much of a token. The longest ones of published vocabularies are runs of 128 spaces.
constexpr size_t kMaxTokenTextBytes = 256;

// Immutable once filled, and therefore thread-safe.
class TokenTable {
 public:
  // Adds the token of the next id; the spelling is empty for an id without a token.
  void Add(absl::string_view spelling, bool is_special) {
    ends_.push_back(spellings_.append(spelling.data(), spelling.size()).size());
    is_special_.push_back(is_special);
    longest_ = std::max(longest_, Clip(spelling).size());
  }

  // Returns one more than the largest id.
  uint32_t size() const { return static_cast<uint32_t>(ends_.size()); }
  // Returns the spelling, which is empty for an id without a token.
  absl::string_view operator[](uint32_t id) const {
    if (id >= size()) return {};
    const size_t begin = id == 0 ? 0 : ends_[id - 1];
    return absl::string_view(spellings_).substr(begin, ends_[id] - begin);
  }
  bool has(uint32_t id) const { return !(*this)[id].empty(); }
  bool is_special(uint32_t id) const { return id < size() && is_special_[id]; }

  // Returns the spelling as a row carries it: at most kMaxTokenTextBytes, cut between characters.
  absl::string_view Text(uint32_t id) const { return Clip((*this)[id]); }
  // Returns the size of the longest Text.
  size_t longest_text_bytes() const { return longest_; }

 private:
  static absl::string_view Clip(absl::string_view spelling) {
    if (spelling.size() <= kMaxTokenTextBytes) return spelling;
    size_t end = kMaxTokenTextBytes;
    while ((static_cast<unsigned char>(spelling[end]) & 0xC0) == 0x80) --end;
    return spelling.substr(0, end);
  }

  std::string spellings_;  // one after the other
  std::vector<size_t> ends_;
  std::vector<bool> is_special_;
  size_t longest_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_TEXT_TOKEN_TABLE_H_
