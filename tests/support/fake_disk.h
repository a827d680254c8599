// A disk in memory that remembers what was synced. A test can cut the power at any operation and look at what is left.
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

// May be used by one thread at a time, like everything that it hands out.
class FakeDisk {
 public:
  // The fate of unsynced data in a power loss. A real disk may do any of these.
  enum class Loss {
    kNothing,   // nothing is lost, as after kill -9
    kAll,       // everything that was never synced is lost
    kContents,  // names are on the disk, bytes are not
    kRandom,    // any of the names and any part of the bytes are lost
  };

  explicit FakeDisk(uint64_t seed = 0);
  ~FakeDisk();

  std::unique_ptr<Directory> root();

  // Returns the number of operations so far that change the disk or sync it.
  int64_t operations() const;

  // Makes the `operation`-th operation (from 1, counted from the start) and every later one fail with `status`. A write
  // that fails may have been done in part. 0: none fails.
  void FailAt(int64_t operation, absl::Status status = absl::UnavailableError("the power is gone"));

  // Makes only the `operation`-th operation fail.
  void FailOnceAt(int64_t operation, absl::Status status);

  // Runs `action` before the `operation`-th operation, to show what others may do meanwhile.
  void BeforeOperation(int64_t operation, std::function<void()> action);

  // Sets the disk's size. Writes past it fail with RESOURCE_EXHAUSTED.
  void set_capacity(int64_t bytes);
  int64_t used_bytes() const;

  // Return the number of files that are open for reading now, and the bytes that were read so far from any file.
  int64_t opened_files() const;
  int64_t read_bytes() const;

  // Loses what `loss` says, and ends the failure set by FailAt. Directories that were handed out before remain valid,
  // with what is left.
  void LosePower(Loss loss);

  // Returns the current contents of all files, by path.
  std::map<std::string, std::string> Files() const;

  // Overwrites or truncates a file in place, while others may have it open.
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
