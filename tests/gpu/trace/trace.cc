// Records what a process does on its GPU, for tests/gpu/check. CUDA itself loads this library into a process whose
// environment names it in CUDA_INJECTION64_PATH.
//
// It writes a line for each activity to the file that HOOKLINE_GPU_TRACE names. Times are Unix times in nanoseconds:
//
//   kernel BEGIN END NAME
//   copy BEGIN END KIND BYTES    KIND is CUpti_ActivityMemcpyKind: 1 host to device, 2 device to host, 8 on the device
//   wait BEGIN END TYPE          the host waits; TYPE is CUpti_ActivitySynchronizationType
//
// Source: "CUPTI: the CUDA Profiling Tools Interface", activity API, which comes with CUDA and with torch's wheels.
#include <cupti.h>

#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

constexpr size_t kBufferBytes = size_t{8} << 20;
constexpr size_t kAlignment = 8;  // CUPTI demands it
constexpr uint32_t kFlushMilliseconds = 100;

std::FILE* output = nullptr;

uint64_t CUPTIAPI Now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

void Write(const CUpti_Activity& activity) {
  if (activity.kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
    const auto& kernel = reinterpret_cast<const CUpti_ActivityKernel10&>(activity);
    std::fprintf(output, "kernel %" PRIu64 " %" PRIu64 " %s\n", kernel.start, kernel.end, kernel.name);
  } else if (activity.kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
    const auto& copy = reinterpret_cast<const CUpti_ActivityMemcpy6&>(activity);
    std::fprintf(output, "copy %" PRIu64 " %" PRIu64 " %d %" PRIu64 "\n", copy.start, copy.end, copy.copyKind,
                 copy.bytes);
  } else if (activity.kind == CUPTI_ACTIVITY_KIND_SYNCHRONIZATION) {
    const auto& wait = reinterpret_cast<const CUpti_ActivitySynchronization2&>(activity);
    std::fprintf(output, "wait %" PRIu64 " %" PRIu64 " %d\n", wait.start, wait.end, wait.type);
  }
}

void CUPTIAPI GiveBuffer(uint8_t** buffer, size_t* size, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;  // no limit but the buffer's size
}

// CUPTI calls this from one thread of its own.
void CUPTIAPI TakeBuffer(CUcontext /*context*/, uint32_t /*stream*/, uint8_t* buffer, size_t /*size*/, size_t filled) {
  CUpti_Activity* activity = nullptr;
  while (cuptiActivityGetNextRecord(buffer, filled, &activity) == CUPTI_SUCCESS) Write(*activity);
  std::free(buffer);
}

void Finish() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  std::fflush(output);
}

bool Started(CUptiResult result, const char* what) {
  if (result == CUPTI_SUCCESS) return true;
  const char* reason = nullptr;
  cuptiGetResultString(result, &reason);
  std::fprintf(stderr, "gpu trace: %s failed: %s\n", what, reason == nullptr ? "unknown" : reason);
  return false;
}

}  // namespace

// CUDA calls this when it is initialised.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  const char* path = std::getenv("HOOKLINE_GPU_TRACE");
  if (path == nullptr) return 1;
  output = std::fopen(path, "w");
  if (output == nullptr) {
    std::fprintf(stderr, "gpu trace: %s cannot be written\n", path);
    return 1;
  }
  const bool started =
      Started(cuptiActivityRegisterTimestampCallback(Now), "cuptiActivityRegisterTimestampCallback") &&
      Started(cuptiActivityRegisterCallbacks(GiveBuffer, TakeBuffer), "cuptiActivityRegisterCallbacks") &&
      Started(cuptiActivityFlushPeriod(kFlushMilliseconds), "cuptiActivityFlushPeriod");
  if (!started) return 1;
  for (const CUpti_ActivityKind kind :
       {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_SYNCHRONIZATION}) {
    if (!Started(cuptiActivityEnable(kind), "cuptiActivityEnable")) return 1;
  }
  std::atexit(Finish);
  return 1;
}
