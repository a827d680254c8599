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
  std::vector<int64_t> counts;          // of each value
  // 0 if `values` are exact. Otherwise a power of two: each value v stands for values from v up to v x (1 + spacing).
  double spacing = 0;

  // Returns the value with rank ceil(share x firings), counted from 1, or the smallest if the rank is 0. There must be
  // a value.
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

  // Returns a record that continues from `findings`. INVALID_ARGUMENT names a field with a value that no record with
  // these limits could have; `field` is the proto path of the message.
  static absl::StatusOr<LatentRecord> Restore(const LatentLimits& limits, LatentFindings findings,
                                              const std::string& field);

  // Adds the tokens of a sequence, with the latent's value at each. Values that are not above 0, NaN included, do
  // not count.
  void Add(int64_t sequence, absl::Span<const uint32_t> ids, absl::Span<const float> values);

  LatentFindings findings() const;

 private:
  void Count(float value);
  void AddExample(int64_t sequence, int64_t position, absl::Span<const uint32_t> ids, absl::Span<const float> values);

  LatentLimits limits_;
  int64_t firings_ = 0;
  std::vector<LatentExample> examples_;           // a heap, the weakest first
  std::unordered_map<uint32_t, int64_t> counts_;  // by a value's bits without the last dropped_bits_
  int dropped_bits_ = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_LATENT_RECORD_H_
