// Reports the state of the engine, the recordings and the calls to Prometheus.
#ifndef HOOKLINE_SERVER_METRICS_METRICS_H_
#define HOOKLINE_SERVER_METRICS_METRICS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/metric_family.h"
#include "server/engine/engine.h"
#include "server/metrics/call_metrics.h"
#include "server/metrics/http_responder.h"
#include "server/recording/catalog.h"

namespace hookline {

// Returns the snapshot as Prometheus's metric families.
std::vector<prometheus::MetricFamily> CollectMetrics(const EngineSnapshot& snapshot);

// Answers GET /metrics over HTTP with the state of that moment, until it is destroyed.
class MetricsServer {
 public:
  // `address` is HOST:PORT; port 0 means any free one. INVALID_ARGUMENT for another form, UNAVAILABLE for an address
  // that is taken or not this machine's. The server must be destroyed before `engine`, `catalog` and `calls`. `catalog`
  // is null if no recordings are kept, `calls` if no calls are counted.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address, const Engine* engine,
                                                              const Catalog* catalog = nullptr,
                                                              const CallMetrics* calls = nullptr);

  int port() const { return http_.bound().port; }
  // Returns whether only this machine can reach the server.
  bool is_loopback() const { return http_.bound().is_loopback; }

 private:
  MetricsServer(BoundAddress bound, const Engine* engine, const Catalog* catalog, const CallMetrics* calls);

  HttpResponder http_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_METRICS_H_
