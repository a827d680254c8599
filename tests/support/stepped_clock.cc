// A library to preload. It shifts a program's wall clock by the seconds in the file that HOOKLINE_STEPPED_CLOCK names
// (8 bytes in the machine's order), so that a test can set the clock while the program runs. A wait until a time of the
// wall clock lasts as long as the program intends.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <ctime>

namespace {

int64_t ShiftSeconds() {
  static const volatile int64_t* const shift = []() -> const volatile int64_t* {
    const char* path = std::getenv("HOOKLINE_STEPPED_CLOCK");
    const int descriptor = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return nullptr;
    void* memory = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    return memory == MAP_FAILED ? nullptr : static_cast<const volatile int64_t*>(memory);
  }
  ();
  return shift == nullptr ? 0 : *shift;
}

long RealSyscall(long number, long a, long b, long c, long d, long e, long f) {
  static const auto real = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  return real(number, a, b, c, d, e, f);
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* now) noexcept {
  const int result = static_cast<int>(RealSyscall(SYS_clock_gettime, clock, reinterpret_cast<long>(now), 0, 0, 0, 0));
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ShiftSeconds();
  return result;
}

int gettimeofday(timeval* now, void*) noexcept {
  timespec precise;
  const int result = clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return result;
}

time_t time(time_t* now) noexcept {
  timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (now != nullptr) *now = precise.tv_sec;
  return precise.tv_sec;
}

// The kernel's clock is not shifted, but Abseil's waits give it times of the shifted clock.
long syscall(long number, ...) noexcept {
  va_list arguments;
  va_start(arguments, number);
  long values[6];
  for (long& value : values) value = va_arg(arguments, long);
  va_end(arguments);
  timespec until;
  if (number == SYS_futex && (values[1] & FUTEX_CLOCK_REALTIME) != 0 && values[3] != 0) {
    until = *reinterpret_cast<const timespec*>(values[3]);
    until.tv_sec -= ShiftSeconds();
    values[3] = reinterpret_cast<long>(&until);
  }
  return RealSyscall(number, values[0], values[1], values[2], values[3], values[4], values[5]);
}

}  // extern "C"
