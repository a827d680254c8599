// A fake accelerator inside LibTorch, on PrivateUse1. Everything that runs on a GPU runs on its two devices, by the
// CPU's kernels, and the devices are as unkind as a GPU is allowed to be.
//
//   FakeDevice::Reset();
//   auto transfer = MakeTransfer(FakeDevice::Name(1));
//   ...
//   EXPECT_THAT(FakeDevice::Races(), IsEmpty());
//   EXPECT_EQ(FakeDevice::counters().blocking_copies, 0);
//
// - Memory lies at addresses that no host access survives, and is full of NaN when it is allocated and when it is
//   freed.
// - A copy to the host that does not block runs only when the host learns that it has ended, as late as CUDA may run
//   it. Until then its destination is NaN. For a copy to the device, pinned memory must not change until then.
// - Each stream counts its work. Streams and the host know of each other's work only through events. It is reported as
//   a race if a block is read before its writer was waited for, is written while it is still read, or is freed while
//   another stream may still use it.
// - Its guard sets the thread's device and restores it, as CUDA's does.
// - Memory can be limited, and every launch can be made to fail.
//
// A program has the devices if it links hookline_fake_device.
#ifndef HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_H_
#define HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace hookline {

// Thread-safe. All state is global, as that of real devices is.
class FakeDevice {
 public:
  static constexpr int kDevices = 2;

  // The counts since Reset.
  struct Counters {
    int64_t launches = 0;         // operators that reached a device; views do not
    int64_t blocking_copies = 0;  // copies for which the host waits, and values that it reads
    int64_t pageable_copies = 0;  // copies that need not block, from or to memory that is not pinned
    int64_t uploads = 0;          // copies from the host, of either kind
    int64_t host_waits = 0;       // synchronizations of events, streams or devices
    int64_t queries = 0;          // of events and streams
    int64_t pinned_bytes = 0;     // bytes that are allocated now
  };

  // Returns the name by which LibTorch knows the device.
  static std::string Name(int device = 0);

  // Resets the counters, races, limits and failures. Nothing may run on the devices meanwhile.
  static void Reset();
  static Counters counters();
  static std::map<std::string, int64_t> LaunchesByOperator();
  static std::vector<std::string> Races();
  // Returns how often a thread selected `device` in a way in which CUDA makes a context on the device.
  static int64_t Switches(int device);
  // Return the bytes that are allocated on `device`, and the most that were at the same time since Reset.
  static int64_t AllocatedBytes(int device);
  static int64_t PeakBytes(int device);

  // Makes allocations beyond `bytes` throw c10::OutOfMemoryError.
  static void LimitMemory(int device, int64_t bytes);
  // Makes every launch, wait and pinning of memory throw a c10::Error with `message`; empty: none of them throws.
  static void FailWith(const std::string& message);
  // Does the same for threads whose current device is `device`, until Reset.
  static void FailDevice(int device, const std::string& message);
  // These are sabotage, to show that the check works: streams no longer wait for events, or hosts for copies.
  static void IgnoreStreamWaits();
  static void IgnoreHostWaits();
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_H_
