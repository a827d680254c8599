// Reports the states of recordings and their disk space to Prometheus.
#ifndef HOOKLINE_SERVER_METRICS_RECORDING_METRICS_H_
#define HOOKLINE_SERVER_METRICS_RECORDING_METRICS_H_

#include <vector>

#include "prometheus/metric_family.h"
#include "server/recording/catalog.h"

namespace hookline {

// Returns the catalog's usage as Prometheus's metric families. A size that is unknown or has no limit is left out.
std::vector<prometheus::MetricFamily> CollectRecordingMetrics(const CatalogUsage& usage);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_RECORDING_METRICS_H_
