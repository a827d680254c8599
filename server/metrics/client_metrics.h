// Metrics of each client of the auth file: its captures, slabs, idle time and tokens.
#ifndef HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_
#define HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_

#include <vector>

#include "prometheus/metric_family.h"
#include "server/engine/snapshot.h"

namespace hookline {

// The label `client` of all clients that the auth file does not name. An auth file may use the name too; the label
// `authenticated` distinguishes the two.
inline constexpr char kUnnamedClients[] = "unnamed";

// Returns the clients' load as Prometheus's metric families. Clients that the auth file does not name count as one
// client, kUnnamedClients: otherwise the number of series would have no bound, since the number of addresses has none.
std::vector<prometheus::MetricFamily> CollectClientMetrics(const EngineSnapshot& snapshot);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_CLIENT_METRICS_H_
