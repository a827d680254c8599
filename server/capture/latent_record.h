// Gathers over a dataset's tokens where one latent of a dictionary is largest, how often it is above 0, and how those
// values are distributed. The result is a function of the values alone, whatever the order in which they come.
//
//   LatentRecord record({/*top=*/20, /*context=*/32, /*max_values=*/4096});
//   record.Add(sequence, ids, values);        // for each sequence
//   record.findings().examples[0].activation  // the largest value
#ifndef HOOKLINE_SERVER_CAPTURE_LATENT_RECORD_H_
#define HOOKLINE_SERVER_CAPTURE_LATENT_RECORD_H_

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace hookline {

// A token at which a latent is large, and the latent around it.
struct LatentExample {
  float activation = 0;
  int64_t sequence = 0;
  int32_t position = 0;
  int32_t first_position = 0;       // of the context
  std::vector<uint32_t> token_ids;  // of the context
  std::vector<float> activations;   // at each of token_ids
};

struct LatentFindings {
  int64_t firings = 0;                  // values above 0
  std::vector<LatentExample> examples;  // the strongest first; of equal ones, the earlier in the dataset
  std::vector<float> values;            // those above 0, ascending and distinct
  std::vector<int64_t> counts;          // of each
  // 0: `values` are exact. Otherwise each stands for values from itself up to itself x (1 + spacing); a power of two.
  double spacing = 0;

  // The value with rank ceil(share x firings), counted from 1; the smallest where that is 0. There must be one.
  float Quantile(double share) const;
};

struct LatentLimits {
  int64_t top = 0;         // examples
  int64_t context = 0;     // tokens of an example's context
  int64_t max_values = 0;  // distinct values, at least 256: one for each of binary32's exponents
};

class LatentRecord {
 public:
  explicit LatentRecord(const LatentLimits& limits) : limits_(limits) {}

  // Goes on from what `findings` says. INVALID_ARGUMENT names the field that no record with these limits could have;
  // `field` is its message's proto path.
  static absl::StatusOr<LatentRecord> Restore(const LatentLimits& limits, LatentFindings findings,
                                              const std::string& field);

  // Adds the tokens of a sequence, with the latent's value at each. What is not above 0, NaN too, does not count.
  void Add(int64_t sequence, absl::Span<const uint32_t> ids, absl::Span<const float> values);

  LatentFindings findings() const;

 private:
  void Count(float value);
  void AddExample(int64_t sequence, int64_t position, absl::Span<const uint32_t> ids, absl::Span<const float> values);

  LatentLimits limits_;
  int64_t firings_ = 0;
  std::vector<LatentExample> examples_;           // a heap, the weakest first
  std::unordered_map<uint32_t, int64_t> counts_;  // by a value's bits but the last dropped_bits_
  int dropped_bits_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_LATENT_RECORD_H_
