// Memory that does not suffice is an error that names both numbers.
#include "server/model/load/memory_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A root folder with the files that the kernel would provide.
class FakeRoot {
 public:
  FakeRoot() {
    path_ = std::filesystem::temp_directory_path() /
            absl::StrCat("hookline-memory-", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-",
                         ::getpid());
    Write("/proc/meminfo", "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    8000 kB\n");
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }

  void Write(const std::string& file, const std::string& text) {
    const std::string whole = path_.string() + file;
    std::filesystem::create_directories(std::filesystem::path(whole).parent_path());
    std::ofstream(whole) << text;
  }
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::optional<AvailableMemory> Thousand(const std::string& device) {
  if (device == "cuda:0") return std::nullopt;
  return AvailableMemory{1000, "a test"};
}

TEST(MemoryTest, WeightsThatDoNotFitAreRefusedWithBothNumbers) {
  EXPECT_TRUE(CheckMemory({{"small", "cpu", 1000}}, Thousand).ok());
  absl::Status status = CheckMemory({{"large", "cpu", 1001}}, Thousand);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("model 'large' need 0.0 GB (1001 bytes) on cpu"),
                                                   HasSubstr("(1000 bytes)"), HasSubstr("a test")));
}

TEST(MemoryTest, ModelsOfOneDeviceCountTogether) {
  EXPECT_TRUE(CheckMemory({{"a", "cpu", 600}, {"b", "cuda:1", 600}}, Thousand).ok());
  absl::Status status = CheckMemory({{"a", "cpu", 600}, {"b", "cpu", 700}}, Thousand);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("(1300 bytes)"), HasSubstr("'a' 0.0 GB (600 bytes), 'b' 0.0 GB (700 bytes)")));
}

TEST(MemoryTest, ADeviceThatTellsNothingPasses) {
  EXPECT_TRUE(CheckMemory({{"large", "cuda:0", int64_t{1} << 60}}, Thousand).ok());
}

TEST(MemoryTest, TheHostsIsWhatTheKernelCallsAvailable) {
  FakeRoot root;
  auto memory = HostMemory(root.path());
  ASSERT_TRUE(memory.has_value());
  EXPECT_EQ(memory->bytes, 8000 * 1024);
  EXPECT_THAT(memory->source, HasSubstr("MemAvailable"));
}

TEST(MemoryTest, ACgroupsLimitCountsWhereItIsLess) {
  FakeRoot root;
  root.Write("/proc/self/cgroup", "1:cpu:/elsewhere\n0::/system.slice/hookline.service\n");
  root.Write("/sys/fs/cgroup/system.slice/hookline.service/memory.max", "max\n");
  root.Write("/sys/fs/cgroup/system.slice/hookline.service/memory.current", "5000\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 8000 * 1024);

  root.Write("/sys/fs/cgroup/system.slice/memory.max", "1000000\n");
  root.Write("/sys/fs/cgroup/system.slice/memory.current", "700000\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 300000);
  EXPECT_EQ(HostMemory(root.path())->source, "memory.max of /sys/fs/cgroup/system.slice");

  root.Write("/sys/fs/cgroup/system.slice/memory.stat", "anon 1\nactive_file 50000\ninactive_file 100000\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 450000) << "files that it could drop are free";

  root.Write("/sys/fs/cgroup/system.slice/memory.current", "2000000\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 0);
}

TEST(MemoryTest, TheTopCgroupOfAContainerCountsToo) {
  FakeRoot root;
  root.Write("/proc/self/cgroup", "0::/\n");
  root.Write("/sys/fs/cgroup/memory.max", "1000000\n");
  root.Write("/sys/fs/cgroup/memory.current", "100000\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 900000);
  root.Write("/proc/self/cgroup", "0::/inner\n");
  EXPECT_EQ(HostMemory(root.path())->bytes, 900000);
}

TEST(MemoryTest, WithoutTheKernelsWordThereIsNoNumber) { EXPECT_FALSE(HostMemory("/nowhere").has_value()); }

TEST(MemoryTest, ThisMachineTellsItsOwn) {
  auto memory = MemoryOf("cpu");
  ASSERT_TRUE(memory.has_value());
  EXPECT_GT(memory->bytes, 0);
  EXPECT_FALSE(MemoryOf("no device at all").has_value());
}

}  // namespace
}  // namespace hookline
