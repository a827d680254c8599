// What the engine does, for Prometheus.
#ifndef HOOKLINE_SERVER_SERVICE_METRICS_H_
#define HOOKLINE_SERVER_SERVICE_METRICS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"
#include "server/capture/engine.h"

namespace prometheus {
class Exposer;
}

namespace hookline {

// The engine's snapshot at the time of each scrape. `engine` must outlive it.
class EngineMetrics final : public prometheus::Collectable {
 public:
  explicit EngineMetrics(const Engine* engine) : engine_(engine) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Engine* const engine_;
};

// Answers GET /metrics over HTTP until it is destroyed.
class MetricsServer {
 public:
  // `address` is HOST:PORT; port 0: any free one. UNAVAILABLE for an address that is malformed or taken. `engine` must
  // outlive it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address, const Engine* engine);
  ~MetricsServer();

  int port() const;

 private:
  MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<EngineMetrics> metrics);

  const std::shared_ptr<EngineMetrics> metrics_;
  const std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_METRICS_H_
