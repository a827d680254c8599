#include "client/cpp/merge_summaries.h"

#include <cmath>

namespace hookline::client {
namespace {

// Returns the weighted mean. A mean of weight 0 is ignored, even if it is NaN because there were no values. If both
// weights are 0, the result is NaN if either mean is.
double WeightedMean(double a, double a_weight, double b, double b_weight) {
  if (a_weight == 0 && b_weight == 0) return a + b;
  const double sum = (a_weight == 0 ? 0 : a * a_weight) + (b_weight == 0 ? 0 : b * b_weight);
  return sum / (a_weight + b_weight);
}

// Computes in floating point, because the counts come from the server and their product must not overflow.
double FiniteValues(const v1::HookPointSummary& summary, double width) {
  return static_cast<double>(summary.statistics_rows()) * width - static_cast<double>(summary.nan_count()) -
         static_cast<double>(summary.infinity_count());
}

v1::HookPointSummary MergeHookPoint(const v1::HookPointSummary& before, const v1::HookPointSummary& now, double width) {
  // With statistics_only, the statistics begin anew in each call.
  if (now.mean_vector_size() > 0) return now;
  v1::HookPointSummary merged = now;
  const double before_values = FiniteValues(before, width), now_values = FiniteValues(now, width);
  // A row without a finite value has the norm 0 in the mean, unless there is no other row: then the mean is NaN.
  const auto norm = [](const v1::HookPointSummary& of, double values) { return values == 0 ? 0 : of.mean_row_norm(); };
  if (before_values > 0 || now_values > 0) {
    merged.set_mean_row_norm(WeightedMean(norm(before, before_values), static_cast<double>(before.statistics_rows()),
                                          norm(now, now_values), static_cast<double>(now.statistics_rows())));
  } else {
    merged.set_mean_row_norm(before.mean_row_norm() + now.mean_row_norm());
  }
  merged.set_mean(WeightedMean(before.mean(), before_values, now.mean(), now_values));
  merged.set_rms(
      std::sqrt(WeightedMean(before.rms() * before.rms(), before_values, now.rms() * now.rms(), now_values)));
  merged.set_nan_count(before.nan_count() + now.nan_count());
  merged.set_infinity_count(before.infinity_count() + now.infinity_count());
  merged.set_overflow_count(before.overflow_count() + now.overflow_count());
  merged.set_truncated_rows(before.truncated_rows() + now.truncated_rows());
  const auto squares = [](double value) { return value * value; };
  merged.set_conversion_error(std::sqrt(
      WeightedMean(squares(before.conversion_error()), before_values == 0 ? 0 : squares(before.rms()) * before_values,
                   squares(now.conversion_error()), now_values == 0 ? 0 : squares(now.rms()) * now_values)));
  merged.set_statistics_rows(before.statistics_rows() + now.statistics_rows());
  return merged;
}

}  // namespace

v1::CaptureSummary MergeSummaries(const v1::CaptureStarted& started, const v1::CaptureSummary& before,
                                  const v1::CaptureSummary& now) {
  v1::CaptureSummary merged = now;
  for (int i = 0; i < started.hook_points_size(); ++i) {
    *merged.mutable_hook_points(i) =
        MergeHookPoint(before.hook_points(i), now.hook_points(i),
                       started.top_k() > 0 ? started.top_k() : started.hook_points(i).width());
  }
  merged.set_sequences(before.sequences() + now.sequences());
  merged.set_tokens(before.tokens() + now.tokens());
  merged.set_batches(before.batches() + now.batches());
  merged.set_mean_batch_fill(WeightedMean(before.mean_batch_fill(), static_cast<double>(before.batches()),
                                          now.mean_batch_fill(), static_cast<double>(now.batches())));
  v1::CaptureTiming& timing = *merged.mutable_timing();
  timing.set_total_seconds(before.timing().total_seconds() + now.timing().total_seconds());
  timing.set_queue_seconds(before.timing().queue_seconds() + now.timing().queue_seconds());
  timing.set_forward_seconds(before.timing().forward_seconds() + now.timing().forward_seconds());
  timing.set_copy_seconds(before.timing().copy_seconds() + now.timing().copy_seconds());
  timing.set_wire_seconds(before.timing().wire_seconds() + now.timing().wire_seconds());
  return merged;
}

}  // namespace hookline::client
