// The statistics that statistics_only adds to the sums of row_statistics.h: the mean vector and the distribution
// of the rows' norms.
#ifndef HOOKLINE_SERVER_ENGINE_ROW_PROFILE_H_
#define HOOKLINE_SERVER_ENGINE_ROW_PROFILE_H_

#include <cstdint>
#include <map>
#include <vector>

#include "server/base/row_layout.h"
#include "server/capture/capture.h"

namespace hookline {

// Norms are counted in buckets whose bounds are binary32 numbers with 7 fraction bits, 128 to each power of two. A
// norm is reported as the middle of its bucket, which is within 0.4 % of it. There are at most 32641 buckets,
// whatever the rows are, and a few hundred for the norms of a model. Norms below 1.2e-38 count as 0, and norms above
// 3.4e38 as 3.4e38.
class RowProfile {
 public:
  explicit RowProfile(int64_t width) : sums_(width), left_out_(width) {}

  // Adds `rows` rows that lie one after another. Entries that a row with top_k does not have count as 0.
  void Add(const uint8_t* data, int64_t rows, const RowLayout& layout);

  // Fills mean_vector, the quantiles and outlier_row_share.
  void Summarize(HookPointSummary* summary) const;

 private:
  // Adds a row with values that are not finite to the columns. Returns the sum of the others' squares.
  double AddOneByOne(const std::vector<float>& values, const std::vector<uint32_t>& columns);
  // Returns the norm that a share `share` of the rows does not exceed: the one with rank ceil(share x rows), counted
  // from 1.
  double Quantile(double share) const;

  int64_t rows_ = 0;
  std::vector<double> sums_;       // of the finite values of each column
  std::vector<int64_t> left_out_;  // values of each column that are not finite
  std::map<uint32_t, int64_t> norms_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ROW_PROFILE_H_
