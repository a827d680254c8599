// A fake accelerator inside LibTorch, on PrivateUse1: two devices on which everything runs that runs on a GPU, computed
// by the CPU's kernels, and which is as unkind as a GPU may be.
//
//   FakeDevice::Reset();
//   auto transfer = MakeTransfer(FakeDevice::Name(1));
//   ...
//   EXPECT_THAT(FakeDevice::Races(), IsEmpty());
//   EXPECT_EQ(FakeDevice::counters().blocking_copies, 0);
//
// - Memory lies at addresses that no host access survives, and is full of NaN when it is allocated and when it is
// freed.
// - A copy to the host that does not block runs when the host learns that it has ended, as late as CUDA may run it;
// until
//   then its destination is NaN. What is copied to the device from pinned memory must stay as it is until then.
// - Each stream counts its work, and streams and the host know of each other's work only what an event told them. A
// read
//   of a block whose writer was not waited for, a write into one that is still read, and the freeing of a block that
//   another stream may still use are races, and reported as such.
// - As CUDA's, its guard sets the thread's device and sets it back.
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

// Thread-safe. Everything is global, as devices are.
class FakeDevice {
 public:
  static constexpr int kDevices = 2;

  // Counted since Reset.
  struct Counters {
    int64_t launches = 0;         // operators that reached a device; views do not
    int64_t blocking_copies = 0;  // copies for which the host waits, and values that it reads
    int64_t pageable_copies = 0;  // copies that need not block, from or to memory that is not pinned
    int64_t uploads = 0;          // copies from the host, of either kind
    int64_t host_waits = 0;       // synchronizations of events, streams or devices
    int64_t queries = 0;          // of events and streams
    int64_t pinned_bytes = 0;     // that are allocated now
  };

  // Returns the name by which LibTorch knows the device.
  static std::string Name(int device = 0);

  // Sets the counters, races, limits and failures back. Nothing may run on the devices meanwhile.
  static void Reset();
  static Counters counters();
  static std::map<std::string, int64_t> LaunchesByOperator();
  static std::vector<std::string> Races();
  // Counts how often a thread made `device` its current one in a way that has CUDA make a context on it.
  static int64_t Switches(int device);
  // Bytes that are allocated on `device`, and the most that were at a time since Reset.
  static int64_t AllocatedBytes(int device);
  static int64_t PeakBytes(int device);

  // Allocations beyond it throw c10::OutOfMemoryError.
  static void LimitMemory(int device, int64_t bytes);
  // From now on every launch, every wait and every pinning of memory throws a c10::Error with `message`;
  // empty: none does.
  static void FailWith(const std::string& message);
  // The same for what threads do whose current device is `device`, until Reset.
  static void FailDevice(int device, const std::string& message);
  // Sabotage, to see that the check sees: streams no longer wait for events, or hosts for copies.
  static void IgnoreStreamWaits();
  static void IgnoreHostWaits();
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_FAKE_DEVICE_H_
