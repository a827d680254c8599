// A capture request as the engine takes it: the proto CaptureRequest in plain C++, field by field. The service fills in
// defaults. Engine::Plan validates it; its errors name fields by their proto paths.
#ifndef HOOKLINE_SERVER_CAPTURE_REQUEST_H_
#define HOOKLINE_SERVER_CAPTURE_REQUEST_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/types/span.h"
#include "server/base/dtype.h"
#include "server/text/token_table.h"
#include "server/text/tokenizer.h"

namespace hookline {

// Token sequences in order, all ids in one array: a sequence of one token takes 8 bytes, while a vector for each
// sequence would take 56.
//
//   TokenBatch batch;
//   for (uint32_t id : ids) batch.Append(id);
//   batch.EndSequence();
class TokenBatch {
 public:
  // Adds an id to the sequence that the next EndSequence ends.
  void Append(uint32_t id) { ids_.push_back(id); }
  void EndSequence() { ends_.push_back(static_cast<uint32_t>(ids_.size())); }
  void RemoveFirst(int64_t sequences) {
    if (sequences == 0) return;
    const uint32_t begin = ends_[sequences - 1];
    ids_.erase(ids_.begin(), ids_.begin() + begin);
    ends_.erase(ends_.begin(), ends_.begin() + sequences);
    for (uint32_t& end : ends_) end -= begin;
  }

  bool empty() const { return ends_.empty(); }
  int64_t sequences() const { return static_cast<int64_t>(ends_.size()); }
  int64_t tokens() const { return static_cast<int64_t>(ids_.size()); }
  // Returns the ids of sequence `i`; they are valid until the batch is changed or destroyed.
  absl::Span<const uint32_t> operator[](int64_t i) const {
    const uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return absl::MakeConstSpan(ids_).subspan(begin, ends_[i] - begin);
  }

 private:
  std::vector<uint32_t> ids_;
  std::vector<uint32_t> ends_;  // where each sequence ends in ids_; 32 bits suffice, since a message is below 2 GiB
};

struct DatasetSource {
  std::string name;
  int64_t sequence_length = 0;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  std::optional<uint32_t> prepend_token_id;
  std::optional<uint64_t> shuffle_seed;
  int64_t epochs = 1;
  int64_t skip_sequences = 0;

  friend bool operator==(const DatasetSource& a, const DatasetSource& b) {
    return a.name == b.name && a.sequence_length == b.sequence_length && a.first_sequence == b.first_sequence &&
           a.sequence_count == b.sequence_count && a.prepend_token_id == b.prepend_token_id &&
           a.shuffle_seed == b.shuffle_seed && a.epochs == b.epochs && a.skip_sequences == b.skip_sequences;
  }
};

enum class OnLag { kDetach, kWait };

struct FeedSource {
  std::string name;
  DatasetSource dataset;
  int64_t start_when_subscribers = 1;
  OnLag on_lag = OnLag::kDetach;
};

// The client streams its sequences in (Capture::AddSequences).
struct StreamedSource {};

// Selects rows of a sequence; see the proto message of the same name.
struct Selection {
  int64_t skip_first = 0;
  int64_t position_end = 0;  // 0: no end; negative: counted from the end of the sequence
  int64_t position_stride = 1;
  std::vector<uint32_t> exclude_token_ids;
  int64_t sample_rows = 0;  // 0: no sampling
  uint64_t seed = 0;
  bool last_only = false;
};

// The encoding of chunks. The plan needs it to size them.
enum class Encoding { kBytes, kValues };

// The facts that a capture states about tokens as text; filled in by the service, which knows the tokenizers.
struct TextFacts {
  std::shared_ptr<const TokenTable> tokens;  // spellings to send with provenance; null: none
  std::vector<SpecialToken> added;           // tokens that were added to each text
  std::string warning;                       // the proto CaptureStarted.tokenizer_warning
  // The tokens come from a text, so they begin with the first sequence even if the request resumes.
  bool tokens_are_whole = false;
};

// Texts, which the service turns into tokens before the engine sees the request.
enum class LongTexts { kRefuse, kTruncate, kSplit };
struct TextSource {
  std::vector<std::string> texts;
  std::optional<bool> add_special_tokens;  // absent: as the tokenizer does by default
  LongTexts long_texts = LongTexts::kRefuse;
};

struct CaptureRequest {
  std::string model;
  std::vector<std::string> hook_points;
  // monostate: none was given, which is an error.
  std::variant<std::monostate, TokenBatch, DatasetSource, FeedSource, StreamedSource, TextSource> source;
  std::optional<int64_t> max_activations;
  std::map<std::string, int64_t> max_activations_by_hook_point;
  Dtype dtype = Dtype::kFloat32;
  Encoding encoding = Encoding::kBytes;
  Selection selection;
  bool provenance = false;
  int64_t max_message_bytes = 0;  // 0: the default
  bool deterministic = false;
  std::string resume_token;
  int64_t top_k = 0;  // 0: whole rows
  bool statistics_only = false;
  // The facts that the service knows about the model's tokenizer.
  TextFacts text;
  std::string record_as;  // the service acts on it (Recorder); the engine ignores it
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_REQUEST_H_
