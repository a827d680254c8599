// A capture request as the engine takes it: the proto CaptureRequest in plain C++, field by field. Defaults are filled
// in by the service; validation is the engine's (Engine::Start), whose errors name fields by their proto paths.
#ifndef HOOKLINE_SERVER_CAPTURE_REQUEST_H_
#define HOOKLINE_SERVER_CAPTURE_REQUEST_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/base/dtype.h"

namespace hookline {

// Token sequences in order.
struct TokenBatch {
  std::vector<std::vector<uint32_t>> sequences;
};

struct DatasetSource {
  std::string name;
  int64_t sequence_length = 0;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  std::optional<uint32_t> prepend_token_id;

  friend bool operator==(const DatasetSource& a, const DatasetSource& b) {
    return a.name == b.name && a.sequence_length == b.sequence_length && a.first_sequence == b.first_sequence &&
           a.sequence_count == b.sequence_count && a.prepend_token_id == b.prepend_token_id;
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

// Which rows of a sequence are kept; see the proto message of the same name.
struct Selection {
  int64_t skip_first = 0;
  int64_t position_end = 0;  // 0: no end
  int64_t position_stride = 1;
  std::vector<uint32_t> exclude_token_ids;
  int64_t sample_rows = 0;  // 0: no sampling
  uint64_t seed = 0;
};

// How chunks will be written out; the engine needs it to size them.
enum class Encoding { kBytes, kValues };

struct CaptureRequest {
  std::string model;
  std::vector<std::string> hook_points;
  // monostate: none was given, which is an error.
  std::variant<std::monostate, TokenBatch, DatasetSource, FeedSource, StreamedSource> source;
  std::optional<int64_t> max_activations;
  std::map<std::string, int64_t> max_activations_by_hook_point;
  Dtype dtype = Dtype::kFloat32;
  Encoding encoding = Encoding::kBytes;
  Selection selection;
  bool provenance = false;
  int64_t max_message_bytes = 0;  // 0: the default
  bool deterministic = false;
  std::string resume_token;
  std::string record_as;  // the service's to act on (Recorder); the engine takes no notice
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_REQUEST_H_
