#include "server/formats/zip_archive.h"

#include <string>

#include "gmock/gmock.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::StatusOr<ZipArchive> Open(const std::string& bytes) {
  const ScratchFile scratch;
  scratch.Write(bytes);
  auto file = InputFile::Open(scratch.path());
  if (!file.ok()) return file.status();
  auto archive = ZipArchive::Open(*std::move(file));
  if (!archive.ok()) {
    EXPECT_EQ(archive.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(archive.status().message(), HasSubstr(scratch.path()));
  }
  return archive;
}

std::string Refusal(ZipWriter::Entry entry) {
  const auto archive = Open(ZipWriter().Add({"a", "first"}).Add(std::move(entry)).Write());
  EXPECT_FALSE(archive.ok());
  return std::string(archive.status().message());
}

ZipWriter::Entry Wrong() {
  ZipWriter::Entry entry;
  entry.name = "folder/wrong";
  entry.data = "second";
  return entry;
}

std::string Text(const ZipArchive& archive, const std::string& name) {
  const absl::StatusOr<std::string> text = archive.Read(name, /*max_bytes=*/100);
  EXPECT_TRUE(text.ok()) << text.status();
  EXPECT_TRUE(archive.Check(name).ok());
  return text.value_or("");
}

TEST(ZipArchiveTest, StoredEntriesAreFoundInBothFormsOfTheFormat) {
  for (const bool zip64 : {false, true}) {
    ZipWriter::Entry second = Wrong();
    second.zip64 = zip64;
    const auto archive = Open(ZipWriter().Add({"a", "first"}).Add(second).Add({"empty", ""}).Write(zip64));
    ASSERT_TRUE(archive.ok()) << archive.status();
    ASSERT_EQ(archive->entries().size(), 3u);
    EXPECT_EQ(Text(*archive, "a"), "first");
    EXPECT_EQ(Text(*archive, "folder/wrong"), "second");
    EXPECT_EQ(Text(*archive, "empty"), "");
  }
}

TEST(ZipArchiveTest, AWrongChecksumNamesItsEntry) {
  ZipWriter::Entry entry = Wrong();
  entry.crc = 123;
  const auto archive = Open(ZipWriter().Add({"a", "first"}).Add(entry).Write());
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_EQ(Text(*archive, "a"), "first");
  for (const absl::Status& status : {archive->Read("folder/wrong", 100).status(), archive->Check("folder/wrong")}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("'folder/wrong'"), HasSubstr("checksum")));
  }
}

TEST(ZipArchiveTest, AnEntryBeyondItsReadersLimitIsRefused) {
  const auto archive = Open(ZipWriter().Add({"a", "first"}).Write());
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_TRUE(archive->Read("a", 5).ok());
  EXPECT_THAT(archive->Read("a", 4).status().message(), AllOf(HasSubstr("'a'"), HasSubstr("5 bytes; at most 4")));
}

TEST(ZipArchiveTest, CompressedAndEncryptedEntriesAreRefused) {
  ZipWriter::Entry entry = Wrong();
  entry.method = 8;
  EXPECT_THAT(Refusal(entry), HasSubstr("'folder/wrong' is compressed"));
  entry = Wrong();
  entry.flags = 1;
  EXPECT_THAT(Refusal(entry), HasSubstr("'folder/wrong' is encrypted"));
}

TEST(ZipArchiveTest, EntriesThatOverlapAreRefused) {
  ZipWriter::Entry entry = Wrong();
  entry.data = "first";
  entry.offset = 0;  // that of the first entry
  EXPECT_THAT(Refusal(entry), HasSubstr("overlap"));
}

TEST(ZipArchiveTest, ANameTwiceIsRefused) {
  ZipWriter::Entry entry = Wrong();
  entry.name = "a";
  EXPECT_THAT(Refusal(entry), HasSubstr("'a' appears twice"));
}

TEST(ZipArchiveTest, PlacesOutsideTheFileAreRefused) {
  for (const bool zip64 : {false, true}) {
    for (const uint64_t number : {uint64_t{1} << 20, uint64_t{0xfffffffe}, UINT64_MAX, UINT64_MAX - 30}) {
      if (!zip64 && number > 0xffffffff) continue;
      ZipWriter::Entry entry = Wrong();
      entry.zip64 = zip64;
      entry.offset = number;
      EXPECT_THAT(Refusal(entry), HasSubstr("'folder/wrong'"));
      entry = Wrong();
      entry.zip64 = zip64;
      entry.size = number;
      EXPECT_THAT(Refusal(entry), HasSubstr("'folder/wrong'"));
    }
  }
}

TEST(ZipArchiveTest, ALongNameIsRefused) {
  ZipWriter::Entry entry = Wrong();
  entry.name = std::string(60000, 'n');
  EXPECT_THAT(Refusal(entry), HasSubstr("60000 bytes"));
}

TEST(ZipArchiveTest, MoreEntriesThanThereIsRoomForAreRefused) {
  std::string bytes = ZipWriter().Add({"a", "first"}).Write();
  bytes.replace(bytes.size() - 12, 2, "\xff\xff");
  EXPECT_THAT(Open(bytes).status().message(), HasSubstr("more entries than it has room for"));
}

TEST(ZipArchiveTest, AFileThatIsNotAZipArchiveIsRefused) {
  EXPECT_THAT(Open("PK").status().message(), HasSubstr("not a zip archive"));
  EXPECT_THAT(Open(std::string(100000, 'x')).status().message(), HasSubstr("not a zip archive"));
  EXPECT_FALSE(Open("").ok());
}

TEST(ZipArchiveTest, EveryCutIsAnError) {
  for (const bool zip64 : {false, true}) {
    const std::string bytes = ZipWriter().Add({"a", "first"}).Add(Wrong()).Write(zip64);
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(Open(bytes.substr(0, length)).ok()) << length;
    }
  }
}

}  // namespace
}  // namespace hookline
