#include "server/metrics/recording_metrics.h"

#include <cstdint>

#include "absl/strings/ascii.h"
#include "server/metrics/family_writer.h"

namespace hookline {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Gauge(const char* name, const char* help, int64_t value) {
  return MakeFamily(name, help, MetricType::Gauge, static_cast<double>(value));
}

}  // namespace

std::vector<MetricFamily> CollectRecordingMetrics(const CatalogUsage& usage) {
  std::vector<MetricFamily> families;
  FamilyWriter recordings("hookline_recordings", "Recordings by state; unreadable: the manifest is damaged.",
                          MetricType::Gauge);
  for (const auto& [state, count] : usage.recordings) {
    recordings.Add({{"state", absl::AsciiStrToLower(RecordingStateName(state))}}, static_cast<double>(count));
  }
  recordings.Add({{"state", "unreadable"}}, static_cast<double>(usage.unreadable));
  families.push_back(recordings.Take());
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
