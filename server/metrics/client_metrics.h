// Metrics of each client of the auth file: its captures, slabs, rows and refusals.
#ifndef HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_
#define HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_

#include <vector>

#include "prometheus/metric_family.h"
#include "server/engine/snapshot.h"

namespace hookline {

// The client in labels of metrics for all that the auth file does not name. An auth file may use the name too; the
// label `authenticated` tells the two apart.
inline constexpr char kUnnamedClients[] = "unnamed";

// Returns the clients' load as Prometheus's metric families. Clients that the auth file does not name are one client,
// kUnnamedClients: the number of addresses has no bound, and neither would the number of series.
std::vector<prometheus::MetricFamily> CollectClientMetrics(const EngineSnapshot& snapshot);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_
