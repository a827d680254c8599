// Reports the version of the server, and what the kernel knows of its process, to Prometheus.
#ifndef HOOKLINE_SERVER_METRICS_PROCESS_METRICS_H_
#define HOOKLINE_SERVER_METRICS_PROCESS_METRICS_H_

#include <vector>

#include "prometheus/metric_family.h"

namespace hookline {

// Returns the metric families of this process as of now, by the names that Prometheus's clients give them. Values that
// the kernel does not report are 0.
std::vector<prometheus::MetricFamily> CollectProcessMetrics();

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_PROCESS_METRICS_H_
