#include "server/base/freed_memory.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <limits>

#include "absl/time/time.h"

namespace hookline {
namespace {

// Five looks fit into the ten seconds that the header promises. A forward pass allocates and frees memory all the time,
// so that at least one look finds it holding what it needs.
constexpr absl::Duration kLookInterval = absl::Seconds(2);
constexpr int kLooks = 5;
// A process that used a smaller part of a core than this between two decisions is idle: health checks and metrics need
// less, and a forward pass needs more.
constexpr double kIdlePart = 0.02;

#ifdef __GLIBC__
int64_t FreeBytes() { return static_cast<int64_t>(mallinfo2().fordblks); }

int64_t ResidentBytes() {
  int64_t pages = 0;
  int64_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

void Trim(int64_t kept_bytes) { malloc_trim(static_cast<size_t>(kept_bytes)); }
#else
int64_t FreeBytes() { return 0; }
int64_t ResidentBytes() { return 0; }
void Trim(int64_t) {}
#endif

double ProcessorSeconds() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

}  // namespace

void KeepFreedMemory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // Threads' own arenas are heaps of 64 MiB that are unmapped as soon as they are empty, whatever the thresholds say.
  mallopt(M_ARENA_MAX, 1);
#endif
}

FreedMemoryReturner::FreedMemoryReturner(int64_t kept_bytes) : kept_bytes_(kept_bytes), thread_([this] { Loop(); }) {}

FreedMemoryReturner::~FreedMemoryReturner() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void FreedMemoryReturner::Loop() {
  // malloc also counts memory that it has already returned as free, so the resident size is checked too.
  int64_t resident_after_trim = 0;
  int64_t least_free = std::numeric_limits<int64_t>::max();
  double processor_seconds = ProcessorSeconds();
  int looks = 0;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kLookInterval)) return;
    }
    least_free = std::min(least_free, FreeBytes());
    if (++looks < kLooks) continue;
    const double used = ProcessorSeconds() - processor_seconds;
    processor_seconds += used;
    const bool is_idle = used < kIdlePart * absl::ToDoubleSeconds(kLooks * kLookInterval);
    const int64_t kept_bytes = is_idle ? 0 : kept_bytes_;
    if (least_free > kept_bytes && ResidentBytes() > resident_after_trim + kept_bytes) {
      Trim(kept_bytes);
      resident_after_trim = ResidentBytes();
    }
    looks = 0;
    least_free = std::numeric_limits<int64_t>::max();
  }
}

}  // namespace hookline
