#include "server/metrics/recording_metrics.h"

#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "prometheus/client_metric.h"

namespace hookline {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

void Add(MetricFamily* family, std::vector<ClientMetric::Label> labels, int64_t value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = static_cast<double>(value);
  family->metric.push_back(std::move(metric));
}

MetricFamily Gauge(std::string name, std::string help) {
  MetricFamily family;
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = prometheus::MetricType::Gauge;
  return family;
}

MetricFamily Gauge(std::string name, std::string help, int64_t value) {
  MetricFamily family = Gauge(std::move(name), std::move(help));
  Add(&family, {}, value);
  return family;
}

}  // namespace

std::vector<MetricFamily> CollectRecordingMetrics(const CatalogUsage& usage) {
  std::vector<MetricFamily> families;
  MetricFamily recordings = Gauge("hookline_recordings", "Recordings by state; unreadable: the manifest is damaged.");
  for (const auto& [state, count] : usage.recordings) {
    Add(&recordings, {{"state", absl::AsciiStrToLower(RecordingStateName(state))}}, count);
  }
  Add(&recordings, {{"state", "unreadable"}}, usage.unreadable);
  families.push_back(std::move(recordings));
  families.push_back(Gauge("hookline_recordings_bytes", "Size of all files of recordings.", usage.used_bytes));
  if (usage.quota_bytes > 0) {
    families.push_back(
        Gauge("hookline_recordings_quota_bytes", "Size that recordings may reach together.", usage.quota_bytes));
  }
  if (usage.free_bytes.has_value()) {
    families.push_back(
        Gauge("hookline_recordings_disk_free_bytes", "Free space where recordings are.", *usage.free_bytes));
  }
  families.push_back(Gauge("hookline_recordings_disk_floor_bytes", "Free space that recordings leave to others.",
                           usage.kept_free_bytes));
  return families;
}

}  // namespace hookline
