// A disk in memory that remembers what was synced. A test can end the power at any operation and look at what is left.
//
//   FakeDisk disk;
//   disk.FailAt(7);                             // the 7th operation and all after it fail
//   WriteSomething(disk.root());
//   disk.LosePower(FakeDisk::Loss::kAll);       // what was never synced is gone
//   Check(disk.root());
#ifndef HOOKLINE_TESTS_SUPPORT_FAKE_DISK_H_
#define HOOKLINE_TESTS_SUPPORT_FAKE_DISK_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/base/file_system.h"

namespace hookline {

// One thread at a time, like everything it hands out.
class FakeDisk {
 public:
  // The part of the unsynced that survives a power loss. A real disk may do any of these.
  enum class Loss {
    kNothing,   // as after kill -9
    kAll,       // everything that was never synced
    kContents,  // names are on the disk, bytes are not
    kRandom,    // any of the names, any part of the bytes
  };

  explicit FakeDisk(uint64_t seed = 0);
  ~FakeDisk();

  std::unique_ptr<Directory> root();

  // Operations that change the disk or sync it, since the start.
  int64_t operations() const;

  // The `operation`-th (from 1, counted from the start) and every later one fails with `status` (UNAVAILABLE unless
  // said); a write of it may have been done by half. 0: none fails.
  void FailAt(int64_t operation, absl::Status status = absl::UnavailableError("the power is gone"));

  // The same for the `operation`-th alone.
  void FailOnceAt(int64_t operation, absl::Status status);

  // Runs `action` before the `operation`-th: what somebody else does meanwhile.
  void BeforeOperation(int64_t operation, std::function<void()> action);

  // The disk's size; writes past it fail with RESOURCE_EXHAUSTED.
  void set_capacity(int64_t bytes);
  int64_t used_bytes() const;

  // Files that are open for reading now, and what was read from any so far.
  int64_t opened_files() const;
  int64_t read_bytes() const;

  // Forgets what `loss` takes and the failure set by FailAt. Directories handed out before go on working, on what is
  // left.
  void LosePower(Loss loss);

  // All files as they are now, by path.
  std::map<std::string, std::string> Files() const;

  // Writes to a file, or cuts it, in place, behind the back of those who have it open.
  void Overwrite(const std::string& path, size_t offset, absl::string_view bytes);
  void Truncate(const std::string& path, size_t bytes);

  struct Node;
  struct State;

 private:
  Node& FileAt(const std::string& path);

  std::shared_ptr<State> state_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_FAKE_DISK_H_
