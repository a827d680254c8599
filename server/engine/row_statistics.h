// Statistics of rows on their way out.
#ifndef HOOKLINE_SERVER_ENGINE_ROW_STATISTICS_H_
#define HOOKLINE_SERVER_ENGINE_ROW_STATISTICS_H_

#include <cstdint>

#include "server/base/row_layout.h"
#include "server/capture/capture.h"
#include "server/model/conversion_loss.h"
#include "server/model/transfer.h"

namespace hookline {

// Sums over rows, and the means computed from them. Values that are not finite are counted and otherwise left out; if
// none is finite, means are NaN.
class RowStatistics {
 public:
  // Adds `rows` rows that lie one after another. Of rows with top_k, only the entries that they have count. `known`
  // holds the sums over the rows, or nothing.
  void Add(const uint8_t* data, int64_t rows, const RowLayout& layout, const StagedSums& known = {});
  // Adds the loss of the conversion to the dtype.
  void Add(const ConversionLoss& loss);
  void Add(const RowStatistics& other);

  // Fills everything except `rows` and the statistics of statistics_only (row_profile.h).
  void Summarize(HookPointSummary* summary) const;

 private:
  int64_t rows_ = 0;
  int64_t finite_values_ = 0;
  double norms_ = 0;
  double sum_ = 0;
  double squares_ = 0;
  int64_t nan_count_ = 0;
  int64_t infinity_count_ = 0;
  ConversionLoss loss_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ROW_STATISTICS_H_
