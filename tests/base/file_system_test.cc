#include "server/base/file_system.h"

#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_disk.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

constexpr int64_t kMaxBytes = 1 << 20;

// Tests the promises of every implementation.
class FileSystemTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) {
      std::string path = ::testing::TempDir() + "/file_system_XXXXXX";
      ASSERT_NE(mkdtemp(path.data()), nullptr);
      auto opened = OpenDirectory(path);
      ASSERT_TRUE(opened.ok()) << opened.status();
      root_ = *std::move(opened);
    } else {
      root_ = disk_.root();
    }
  }

  void Write(Directory& directory, absl::string_view name, absl::string_view text) {
    auto file = directory.Create(name);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->WriteAt(0, Bytes(text)).ok());
    ASSERT_TRUE((*file)->Sync().ok());
  }

  FakeDisk disk_;
  std::unique_ptr<Directory> root_;
};

INSTANTIATE_TEST_SUITE_P(Implementations, FileSystemTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Posix" : "Fake"; });

TEST_P(FileSystemTest, FilesAreWrittenAtOffsetsRenamedReadAndRemoved) {
  ASSERT_TRUE(root_->MakeDirectory("d").ok());
  EXPECT_EQ(root_->MakeDirectory("d").code(), absl::StatusCode::kAlreadyExists);
  auto d = root_->OpenDirectory("d");
  ASSERT_TRUE(d.ok()) << d.status();
  {
    auto file = (*d)->Create("a.tmp");
    ASSERT_TRUE(file.ok());
    EXPECT_TRUE((*file)->WriteAt(4, Bytes("last")).ok());
    EXPECT_TRUE((*file)->WriteAt(0, Bytes("else")).ok());
    EXPECT_TRUE((*file)->Sync().ok());
  }
  EXPECT_EQ((*d)->Create("a.tmp").status().code(), absl::StatusCode::kAlreadyExists);
  Write(**d, "a", "old");
  EXPECT_TRUE((*d)->Rename("a.tmp", "a").ok());
  EXPECT_TRUE((*d)->Sync().ok());
  auto file = (*d)->OpenFile("a");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*ReadAll(**file, kMaxBytes), "elselast");
  auto entries = (*d)->List();
  ASSERT_TRUE(entries.ok());
  ASSERT_EQ(entries->size(), 1u);
  EXPECT_EQ(entries->front().name, "a");
  EXPECT_EQ(entries->front().kind, DirectoryEntry::Kind::kFile);
  EXPECT_EQ(entries->front().bytes, 8);
  EXPECT_EQ(root_->RemoveDirectory("d").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*d)->Remove("a").ok());
  EXPECT_EQ(*ReadAll(**file, kMaxBytes), "elselast");
  EXPECT_EQ((*d)->OpenFile("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*d)->Remove("a").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(root_->RemoveDirectory("d").ok());
  EXPECT_EQ(root_->OpenDirectory("d").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(FileSystemTest, AReadPastTheEndIsDataLossThatNamesTheFileAndNothingWorse) {
  Write(*root_, "a", "0123456789");
  auto file = root_->OpenFile("a");
  ASSERT_TRUE(file.ok()) << file.status();
  uint8_t bytes[4] = {};
  ASSERT_TRUE((*file)->ReadAt(6, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(std::string(bytes, bytes + 4), "6789");
  for (const int64_t offset : {7, 10, 1000}) {
    const absl::Status status = (*file)->ReadAt(offset, absl::MakeSpan(bytes));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << offset;
    EXPECT_THAT(status.message(), HasSubstr((*file)->path()));
  }
  EXPECT_EQ(ReadAll(**file, 9).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(FileSystemTest, FactsTellAFileThatWasWrittenToAgain) {
  auto written = root_->Create("a");
  ASSERT_TRUE((*written)->WriteAt(0, Bytes("0123")).ok());
  auto file = root_->OpenFile("a");
  const auto before = (*file)->Facts();
  ASSERT_TRUE(before.ok());
  EXPECT_EQ(before->bytes, 4);
  EXPECT_EQ(*(*file)->Facts(), *before);
  absl::SleepFor(absl::Milliseconds(20));  // the kernel's clock for files ticks every 4 ms
  ASSERT_TRUE((*written)->WriteAt(0, Bytes("4")).ok());
  EXPECT_NE(*(*file)->Facts(), *before);
}

TEST_P(FileSystemTest, NamesCannotLeaveTheDirectory) {
  for (const char* name : {"", ".", "..", "a/b", "/etc", "../x"}) {
    EXPECT_EQ(root_->Create(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(root_->OpenDirectory(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(root_->OpenFile(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(root_->MakeDirectory(name).code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(root_->Remove(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(root_->Create(absl::string_view("a\0b", 3)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(FileSystemTest, ASecondLockOfADirectoryIsRefusedUntilTheFirstIsGone) {
  ASSERT_TRUE(root_->Lock().ok());
  std::unique_ptr<Directory> other;
  if (GetParam()) {
    other = *OpenDirectory(root_->path());
  } else {
    other = disk_.root();
  }
  EXPECT_EQ(other->Lock().code(), absl::StatusCode::kFailedPrecondition);
  root_.reset();
  EXPECT_TRUE(other->Lock().ok());
}

TEST_P(FileSystemTest, ASharedLockExcludesOnlyOneThatIsHeldAlone) {
  const auto open = [&] { return GetParam() ? *OpenDirectory(root_->path()) : disk_.root(); };
  const std::unique_ptr<Directory> alone = open();
  {
    const std::unique_ptr<Directory> one = open();
    const std::unique_ptr<Directory> other = open();
    ASSERT_TRUE(one->LockShared().ok());
    ASSERT_TRUE(other->LockShared().ok());
    EXPECT_EQ(alone->Lock().code(), absl::StatusCode::kFailedPrecondition);
  }
  ASSERT_TRUE(alone->Lock().ok());
  EXPECT_EQ(root_->LockShared().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(FileSystemTest, ALinkedFileStaysWhenItsFirstNameIsRemoved) {
  ASSERT_TRUE(root_->MakeDirectory("from").ok());
  ASSERT_TRUE(root_->MakeDirectory("to").ok());
  const auto from = *root_->OpenDirectory("from");
  const auto to = *root_->OpenDirectory("to");
  Write(*from, "a", "rows");
  ASSERT_TRUE(to->Link(*from, "a", "b").ok());
  ASSERT_TRUE(from->Remove("a").ok());
  EXPECT_EQ(*ReadAll(**to->OpenFile("b"), kMaxBytes), "rows");
  EXPECT_EQ(to->Link(*from, "a", "c").code(), absl::StatusCode::kNotFound);
  Write(*from, "a", "others");
  EXPECT_EQ(to->Link(*from, "a", "b").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(to->Link(*from, "a", "../c").code(), absl::StatusCode::kInvalidArgument);
}

TEST(PosixFileSystemTest, LinksAreNotFollowed) {
  std::string path = ::testing::TempDir() + "/links_XXXXXX";
  ASSERT_NE(mkdtemp(path.data()), nullptr);
  ASSERT_EQ(symlink("/etc", (path + "/directory").c_str()), 0);
  ASSERT_EQ(symlink("/etc/passwd", (path + "/file").c_str()), 0);
  ASSERT_EQ(mkfifo((path + "/pipe").c_str(), 0600), 0);
  auto root = OpenDirectory(path);
  ASSERT_TRUE(root.ok());
  EXPECT_EQ((*root)->OpenDirectory("directory").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*root)->OpenFile("file").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*root)->Create("file").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT((*root)->OpenFile("pipe").status().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(OpenFile(path + "/pipe").status().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(OpenFile("/dev/null").status().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(OpenFile(path).status().message(), HasSubstr("not a regular file"));
  const auto entries = (*root)->List();
  ASSERT_TRUE(entries.ok());
  for (const DirectoryEntry& entry : *entries) EXPECT_EQ(entry.kind, DirectoryEntry::Kind::kOther);
}

TEST(PosixFileSystemTest, AFullDiskIsResourceExhausted) {
  // The write fails with EFBIG, because a test must not fill the machine's disk.
  std::string path = ::testing::TempDir() + "/full_XXXXXX";
  ASSERT_NE(mkdtemp(path.data()), nullptr);
  auto root = OpenDirectory(path);
  ASSERT_TRUE(root.ok());
  auto file = (*root)->Create("a");
  ASSERT_TRUE(file.ok());
  const absl::Status status = (*file)->WriteAt(int64_t{1} << 62, Bytes("x"));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(FakeDiskTest, PowerLossTakesWhatWasNeverSynced) {
  FakeDisk disk;
  auto root = disk.root();
  auto file = root->Create("a");
  ASSERT_TRUE((*file)->WriteAt(0, Bytes("synced")).ok());
  ASSERT_TRUE((*file)->Sync().ok());
  ASSERT_TRUE(root->Sync().ok());
  ASSERT_TRUE((*file)->WriteAt(6, Bytes("lost")).ok());
  ASSERT_TRUE(root->Create("b").ok());
  ASSERT_TRUE(root->Rename("a", "c").ok());
  disk.LosePower(FakeDisk::Loss::kAll);
  EXPECT_THAT(disk.Files(), ::testing::ElementsAre(::testing::Pair("a", "synced")));
}

TEST(FakeDiskTest, FailsFromTheChosenOperationOn) {
  FakeDisk disk;
  auto root = disk.root();
  disk.FailAt(2);
  EXPECT_TRUE(root->MakeDirectory("d").ok());
  EXPECT_EQ(root->Create("a").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(root->Sync().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(disk.Files(), IsEmpty());
}

}  // namespace
}  // namespace hookline
