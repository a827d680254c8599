// Measures the precision that rows lose when they are converted to the form in which they are sent.
#ifndef HOOKLINE_SERVER_MODEL_CONVERSION_LOSS_H_
#define HOOKLINE_SERVER_MODEL_CONVERSION_LOSS_H_

#include <cstdint>

namespace hookline {

// Sums over rows. A row with a non-finite value does not count in the squares.
struct ConversionLoss {
  double error_squares = 0;    // (converted - value)^2, for dtypes with a scale; 0 for others
  double value_squares = 0;    // value^2, likewise
  int64_t overflows = 0;       // finite values that became infinite
  int64_t truncated_rows = 0;  // rows with more nonzero entries than top_k keeps
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_CONVERSION_LOSS_H_
