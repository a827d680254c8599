#include "server/metrics/family_writer.h"

#include <cstddef>
#include <limits>
#include <utility>

namespace hookline {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

FamilyWriter::FamilyWriter(std::string name, std::string help, MetricType type) {
  family_.name = std::move(name);
  family_.help = std::move(help);
  family_.type = type;
}

void FamilyWriter::Add(Labels labels, double value) {
  ClientMetric& metric = AddMetric(std::move(labels));
  (family_.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
}

void FamilyWriter::Add(Labels labels, const Histogram& histogram) {
  ClientMetric::Histogram& out = AddMetric(std::move(labels)).histogram;
  out.sample_sum = histogram.sum;
  for (size_t i = 0; i < histogram.counts.size(); ++i) {
    out.sample_count += histogram.counts[i];
    out.bucket.push_back({out.sample_count,
                          i < histogram.bounds.size() ? histogram.bounds[i] : std::numeric_limits<double>::infinity()});
  }
}

MetricFamily FamilyWriter::Take() { return std::move(family_); }

ClientMetric& FamilyWriter::AddMetric(Labels labels) {
  family_.metric.emplace_back();
  family_.metric.back().label = std::move(labels);
  return family_.metric.back();
}

MetricFamily MakeFamily(std::string name, std::string help, MetricType type, double value) {
  FamilyWriter family(std::move(name), std::move(help), type);
  family.Add({}, value);
  return family.Take();
}

}  // namespace hookline
