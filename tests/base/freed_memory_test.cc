#include "server/base/freed_memory.h"

#include <unistd.h>

#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/config.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace hookline {
namespace {

// The sanitizers replace glibc's malloc, and keep freed memory on purpose.
#if !defined(ABSL_HAVE_ADDRESS_SANITIZER) && !defined(ABSL_HAVE_THREAD_SANITIZER)

constexpr int64_t kMebibyte = int64_t{1} << 20;

int64_t ResidentMebibytes() {
  int64_t pages = 0;
  int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE) / kMebibyte;
}

// Allocates 200 MB and frees all of it but the last kilobyte: malloc returns free memory at the end of the heap
// by itself.
std::unique_ptr<char[]> Burst() {
  std::vector<std::unique_ptr<char[]>> burst;
  for (int i = 0; i < 200'000; ++i) burst.push_back(std::make_unique<char[]>(1000));
  return std::make_unique<char[]>(1000);
}

TEST(FreedMemory, IsGivenBackAfterABurst) {
  KeepFreedMemory();
  const int64_t before = ResidentMebibytes();
  const std::unique_ptr<char[]> last = Burst();
  ASSERT_GT(ResidentMebibytes(), before + 150);
  const FreedMemoryReturner returner(/*kept_bytes=*/16 * kMebibyte);
  const absl::Time give_up = absl::Now() + absl::Minutes(2);
  // The loop keeps a processor busy; the next test covers an idle process.
  while (ResidentMebibytes() > before + 50 && absl::Now() < give_up) {
  }
  EXPECT_LE(ResidentMebibytes(), before + 50);
}

TEST(FreedMemory, IsGivenBackByAnIdleProcessHoweverLittle) {
  KeepFreedMemory();
  const int64_t before = ResidentMebibytes();
  const std::unique_ptr<char[]> last = Burst();
  ASSERT_GT(ResidentMebibytes(), before + 150);
  const FreedMemoryReturner returner(/*kept_bytes=*/1000 * kMebibyte);
  const absl::Time give_up = absl::Now() + absl::Minutes(2);
  while (ResidentMebibytes() > before + 20 && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(500));
  EXPECT_LE(ResidentMebibytes(), before + 20);
}

#endif

}  // namespace
}  // namespace hookline
