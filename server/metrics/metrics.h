// Shows Prometheus what the engine does.
#ifndef HOOKLINE_SERVER_METRICS_METRICS_H_
#define HOOKLINE_SERVER_METRICS_METRICS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/metric_family.h"
#include "server/engine/engine.h"
#include "server/metrics/http_responder.h"

namespace hookline {

// The snapshot as Prometheus's metric families.
std::vector<prometheus::MetricFamily> CollectMetrics(const EngineSnapshot& snapshot);

// Answers GET /metrics over HTTP with the engine's snapshot at that moment, until it is destroyed.
class MetricsServer {
 public:
  // `address` is HOST:PORT; port 0: any free one. INVALID_ARGUMENT for another form, UNAVAILABLE for an address that is
  // taken or not ours. `engine` must outlive it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address, const Engine* engine);

  int port() const { return http_.bound().port; }
  // Returns whether only this machine reaches it.
  bool is_loopback() const { return http_.bound().is_loopback; }

 private:
  MetricsServer(BoundAddress bound, const Engine* engine);

  HttpResponder http_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_METRICS_H_
