#include "server/metrics/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <memory>

#include "server/base/descriptor_limit.h"
#include "server/metrics/family_writer.h"

namespace hookline {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

int64_t CountEntries(const char* path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path), closedir);
  if (directory == nullptr) return 0;
  int64_t count = 0;
  while (const dirent* entry = readdir(directory.get())) count += entry->d_name[0] == '.' ? 0 : 1;
  return count;
}

// Returns the number of open file descriptors, without the one that is used to count them.
int64_t CountDescriptors() {
  const int64_t count = CountEntries("/proc/self/fd");
  return count == 0 ? 0 : count - 1;
}

int64_t ResidentBytes() {
  int64_t size_pages = 0;
  int64_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> size_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

double ProcessorSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
}

MetricFamily Gauge(const char* name, const char* help, int64_t value) {
  return MakeFamily(name, help, MetricType::Gauge, static_cast<double>(value));
}

}  // namespace

std::vector<MetricFamily> CollectProcessMetrics() {
  FamilyWriter build("hookline_build_info", "Always 1; the label is the server's version.", MetricType::Gauge);
  build.Add({{"version", HOOKLINE_VERSION}}, 1);
  return {build.Take(),
          Gauge("process_resident_memory_bytes", "Resident memory.", ResidentBytes()),
          Gauge("process_open_fds", "Open file descriptors.", CountDescriptors()),
          Gauge("process_max_fds", "File descriptors that may be open.", DescriptorLimit()),
          Gauge("process_threads", "Threads.", CountEntries("/proc/self/task")),
          MakeFamily("process_cpu_seconds_total", "Processor time used.", MetricType::Counter, ProcessorSeconds())};
}

}  // namespace hookline
