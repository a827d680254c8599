// Builds one of Prometheus's metric families.
//
//   FamilyWriter slabs("hookline_slabs", "Slabs by state.", prometheus::MetricType::Gauge);
//   slabs.Add({{"state", "free"}}, 3);
//   families.push_back(slabs.Take());
#ifndef HOOKLINE_SERVER_METRICS_FAMILY_WRITER_H_
#define HOOKLINE_SERVER_METRICS_FAMILY_WRITER_H_

#include <string>
#include <vector>

#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "server/engine/snapshot.h"

namespace hookline {

class FamilyWriter {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  FamilyWriter(std::string name, std::string help, prometheus::MetricType type);

  // Adds a value of a counter or a gauge.
  void Add(Labels labels, double value);
  void Add(Labels labels, const Histogram& histogram);

  // Returns the family. The writer must not be used afterwards.
  prometheus::MetricFamily Take();

 private:
  prometheus::ClientMetric& AddMetric(Labels labels);

  prometheus::MetricFamily family_;
};

// Returns a family with one value and no labels.
prometheus::MetricFamily MakeFamily(std::string name, std::string help, prometheus::MetricType type, double value);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_FAMILY_WRITER_H_
