// Adds up the summaries of the calls of one capture.
#ifndef HOOKLINE_CLIENT_CPP_MERGE_SUMMARIES_H_
#define HOOKLINE_CLIENT_CPP_MERGE_SUMMARIES_H_

#include "hookline/v1/capture_service.pb.h"

namespace hookline::client {

// Returns the summary of a capture whose call with the summary `before` was continued by a call with the summary `now`.
// Both have the hook points of `started`, in its order. Counts and times are sums, and statistics cover the rows of
// both, each weighted as the server weighs them within a call: norms by rows, means of values by finite values. The
// stop reason, `rows` (which a server counts from the start of the capture) and the resume token are those of `now`.
v1::CaptureSummary MergeSummaries(const v1::CaptureStarted& started, const v1::CaptureSummary& before,
                                  const v1::CaptureSummary& now);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_MERGE_SUMMARIES_H_
