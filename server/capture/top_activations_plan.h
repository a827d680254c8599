// A request for the tokens that excite latents most, as the engine takes it, and the plan that the engine makes of it.
// The request is the proto TopActivationsRequest in plain C++, field by field; errors name fields by their proto paths.
#ifndef HOOKLINE_SERVER_CAPTURE_TOP_ACTIVATIONS_PLAN_H_
#define HOOKLINE_SERVER_CAPTURE_TOP_ACTIVATIONS_PLAN_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/capture/dataset_range.h"
#include "server/capture/latent_record.h"
#include "server/capture/limits.h"
#include "server/capture/request.h"
#include "server/model/model.h"

namespace hookline {

struct LatentFinding {
  int64_t latent = 0;
  LatentFindings findings;
};

// Holds the findings of the first sequences, so that a later request can go on from there.
struct TopActivationsCheckpoint {
  std::string digest;
  int64_t sequences = 0;
  int64_t ignored_tokens = 0;
  std::vector<LatentFinding> latents;  // in the order of the request
};

struct TopActivationsRequest {
  std::string dictionary;
  DatasetSource dataset;
  std::vector<int64_t> latents;
  int64_t top = 0;      // 0: the default
  int64_t context = 0;  // 0: the default
  std::vector<uint32_t> ignore_token_ids;
  std::vector<double> quantiles;  // empty: the default
  int64_t checkpoint_sequences = 0;
  std::optional<TopActivationsCheckpoint> resume;
};

struct TopActivationsPlan {
  const Model* model = nullptr;
  int dictionary = 0;  // index among the model's
  DatasetRange dataset;
  std::vector<int64_t> latents;
  LatentLimits limits;
  std::vector<uint32_t> ignored_ids;  // ascending
  std::vector<double> quantiles;
  int64_t checkpoint_sequences = 0;  // 0: none
  int64_t max_batch_tokens = 0;
  std::string digest;
  // The run begins after this many sequences, with the records that each latent has of them.
  int64_t resumed_sequences = 0;
  int64_t resumed_ignored_tokens = 0;
  std::vector<LatentRecord> records;

  int64_t sequences() const { return dataset.end() - dataset.begin(); }
  // Returns how many sequences a forward pass has that begins with this one, counted from 0.
  int64_t SequencesOfPass(int64_t first_sequence) const;
  // Memory that the run holds until its end, counted in token ids as --max-held-tokens does.
  int64_t HeldTokens() const;
};

// Checks and plans `request` for dictionary number `dictionary` of `model`. Errors are those of the proto
// DictionaryService; INVALID_ARGUMENT names the field.
absl::StatusOr<TopActivationsPlan> MakeTopActivationsPlan(TopActivationsRequest request, const Model& model,
                                                          int dictionary, const CaptureLimits& limits,
                                                          const std::vector<const Dataset*>& datasets);

// The events of such a request while it runs.
struct TopActivationsStarted {
  std::shared_ptr<const TopActivationsPlan> plan;
};

struct TopActivationsEnded {
  absl::Status status;
  TopActivationsCheckpoint found;  // over all sequences, if the status is OK
  int64_t tokens = 0;
  absl::Duration total_time, forward_time, queue_time;
};

using TopActivationsEvent = std::variant<TopActivationsStarted, TopActivationsCheckpoint, TopActivationsEnded>;

// A request that runs, as its client sees it. Thread-safe. Destroying it ends the work.
class TopActivationsSearch {
 public:
  virtual ~TopActivationsSearch() = default;
  // Returns the next event, if there is one; TopActivationsEnded is the last. `on_ready` is called when there may be
  // one again.
  virtual std::optional<TopActivationsEvent> Next() = 0;
  // Ends the work: no events follow, and on_ready is not called any more.
  virtual void Cancel() = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_TOP_ACTIVATIONS_PLAN_H_
