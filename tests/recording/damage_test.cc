// Tests the promises of a recording whose files are damaged, change or disappear.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/recording/catalog_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DamageTest : public RecordingTest {
 protected:
  std::shared_ptr<const RecordingReader> Reader(const std::string& name) {
    auto reader = catalog_->OpenReader(name);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return *std::move(reader);
  }

  // Replaces the contents of a file.
  void Replace(const std::string& name, const std::string& file, const std::string& contents) {
    auto directory = disk_.root()->OpenDirectory(name);
    ASSERT_TRUE(directory.ok());
    ASSERT_TRUE((*directory)->Remove(file).ok());
    auto written = (*directory)->Create(file);
    ASSERT_TRUE((*written)->WriteAt(0, {reinterpret_cast<const uint8_t*>(contents.data()), contents.size()}).ok());
  }

  // Flips one bit in one shard of "a".
  void Flip(size_t shard, size_t at) {
    const std::string file = (*catalog_->Get("a"))->shards[shard].file;
    std::string contents = disk_.Files().at("a/" + file);
    contents[at] = static_cast<char>(contents[at] ^ 1);
    Replace("a", file, contents);
  }
};

TEST_F(DamageTest, ARowIsNeverReadFromAShardThatAFlippedBitDamagedAnywhere) {
  Record("a");
  const size_t size = (*catalog_->Get("a"))->shards[1].bytes;
  for (size_t at = 0; at < size; at += 11) {
    Open();
    Flip(1, at);
    auto reader = Reader("a");
    const int64_t shard_rows = reader->manifest().shard_rows;
    EXPECT_TRUE(ReadRows(reader, 0, 0, shard_rows).ok());
    const absl::Status status = ReadRows(reader, 0, 0, 23).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << at;
    EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("recording a, rows ", shard_rows, " to ", 2 * shard_rows - 1,
                                                         ", in shard rows-")));
    EXPECT_TRUE(ReadRows(reader, 0, 2 * shard_rows, 1).ok());
    Flip(1, at);
  }
}

TEST_F(DamageTest, AShardIsCheckedOnceAndAgainWhenItsFileChanges) {
  Record("a");
  Open();
  auto reader = Reader("a");
  const int64_t before = disk_.read_bytes();
  ASSERT_TRUE(ReadRows(reader, 0, 0, 1).ok());
  const int64_t first = disk_.read_bytes() - before;
  EXPECT_GE(first, reader->manifest().shards[0].bytes);
  // Neither this reader nor another one reads the whole shard again.
  ASSERT_TRUE(ReadRows(reader, 0, 1, 1).ok());
  ASSERT_TRUE(ReadRows(Reader("a"), 0, 0, 1).ok());
  EXPECT_EQ(disk_.read_bytes() - before - first, 2 * 5 * 4);
  // The file is overwritten in place, so that readers which have it open see the change too.
  const std::string file = reader->manifest().shards[0].file;
  const std::string whole = disk_.Files().at("a/" + file);
  disk_.Overwrite("a/" + file, whole.size() - 1, "?");
  EXPECT_EQ(ReadRows(reader, 0, 0, 1).status().code(), absl::StatusCode::kDataLoss);
  disk_.Overwrite("a/" + file, whole.size() - 1, whole.substr(whole.size() - 1));
  EXPECT_TRUE(ReadRows(reader, 0, 0, 1).ok());
}

TEST_F(DamageTest, AShardThatIsCutShortWhileItIsReadIsDataLoss) {
  Record("a");
  auto reader = Reader("a");
  ASSERT_TRUE(ReadRows(reader, 0, 0, 1).ok());
  const ShardInfo shard = reader->manifest().shards[0];
  disk_.Truncate("a/" + shard.file, 100);
  const absl::Status status = ReadRows(reader, 0, 0, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("has 100 bytes"));
  ASSERT_EQ(Damage(*reader).size(), 1u);
  EXPECT_EQ(Damage(*reader)[0].file, shard.file);
}

// The products of these sizes, or their sum, exceed 64 bits.
TEST_F(DamageTest, AManifestWhoseSizesOverflowIsDataLoss) {
  Record("a");
  const nlohmann::json whole = nlohmann::json::parse(FormatManifest(**catalog_->Get("a")));
  const int64_t rows = int64_t{1} << 37;
  nlohmann::json wraps = whole;  // 4 * (16 + 2^24 + 2^24 - 21) + 20 is 2^27
  wraps["hook_points"] = nlohmann::json::array();
  for (const int64_t width : {16, 1 << 24, (1 << 24) - 21}) {
    wraps["hook_points"].push_back(
        {{"name", absl::StrCat("p", width)}, {"width", width}, {"max_activations", rows}, {"rows", rows}});
  }
  wraps["rows"] = wraps["shard_rows"] = rows;
  wraps["shards"] = nlohmann::json::array({{{"file", ShardFileName(0, rows)},
                                            {"first_row", 0},
                                            {"rows", rows},
                                            {"bytes", 512},
                                            {"xxh3", std::string(32, '0')}}});
  wraps["resume"]["row"] = 0;
  const auto parsed = ParseManifest(wraps.dump());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(parsed.status().message(), HasSubstr("rows of all hook points take more than"));

  nlohmann::json sum = whole;
  for (auto& shard : sum["shards"]) shard["bytes"] = int64_t{1} << 59;
  EXPECT_THAT(ParseManifest(sum.dump()).status().message(), HasSubstr("shards: take more than"));
}

TEST_F(DamageTest, AShardOfMoreBytesThanAnyFileHasIsNotLaidOut) {
  Manifest manifest = RowsSource::Request("a", {{"p", int64_t{1} << 24, 999'999'999'999}}, Dtype::kFloat32);
  EXPECT_EQ(LayOutShard(manifest, 0, 999'999'999'999).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(LayOutShard(manifest, 0, 1000).ok());
}

TEST_F(DamageTest, HundredsOfShardsAreReadWithFewFilesOpen) {
  auto manifest = RowsSource::Request("a", {{"p", 1, 400}}, Dtype::kFloat32);
  Open({0, 0, /*shard_bytes=*/1});
  auto writer = catalog_->Create(manifest);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(RowsSource(400, 50, 50).SendTo(**writer).ok());
  ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
  std::vector<std::shared_ptr<const RecordingReader>> readers;
  for (int i = 0; i < 3; ++i) {
    readers.push_back(Reader("a"));
    ASSERT_EQ(readers.back()->manifest().shards.size(), 400u);
    ASSERT_TRUE(ReadRows(readers.back(), 0, 0, 400).ok());
    EXPECT_LE(disk_.opened_files(), 256);
  }
}

TEST_F(DamageTest, AReadOfWhatIsRemovedGoesOnOrIsAbortedAndNeverDamaged) {
  auto manifest = RowsSource::Request("a", {{"p", 1, 300}}, Dtype::kFloat32);
  Open({0, 0, /*shard_bytes=*/1});
  for (const int64_t rows : {10, 300}) {
    auto writer = catalog_->Create(manifest);
    ASSERT_TRUE(RowsSource(rows, 50, 50).SendTo(**writer).ok());
    ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
    writer->reset();
    auto reader = Reader("a");
    ASSERT_TRUE(ReadRows(reader, 0, 0, 1).ok());
    ASSERT_TRUE(catalog_->Delete("a").ok());
    EXPECT_TRUE(ReadRows(reader, 0, 0, 10).ok());
    if (rows == 300) {
      const absl::Status status = ReadRows(reader, 0, 0, 300).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
      EXPECT_EQ(reader->VerifyShard(299).status().code(), absl::StatusCode::kAborted);
    }
  }
  EXPECT_EQ(catalog_->OpenReader("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(disk_.opened_files(), 0);
}

TEST_F(DamageTest, AReadThatComesWhileItsRecordingIsMadeIsAskedToComeAgain) {
  Open();
  absl::Status early;
  disk_.BeforeOperation(disk_.operations() + 1, [&] { early = catalog_->OpenReader("a").status(); });
  auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_EQ(early.code(), absl::StatusCode::kAborted) << early;
  EXPECT_TRUE(catalog_->OpenReader("a").ok());
}

TEST_F(DamageTest, AReaderKeepsTheRowsThatALongerShardOrACutTookThePlaceOf) {
  auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
  ASSERT_TRUE(kSource.SendTo(**writer, 1).ok());
  ASSERT_TRUE((*writer)->Close(RecordingState::kStopped, absl::OkStatus()).ok());
  auto reader = Reader("a");
  const int64_t rows = reader->manifest().rows();
  writer = catalog_->Continue("a");
  ASSERT_TRUE(kSource.SendTo(**writer).ok());
  ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
  EXPECT_TRUE(ReadRows(reader, 0, 0, rows).ok());
  auto whole = Reader("a");
  writer = catalog_->Continue("a", ResumePoint{3, "3"});
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_TRUE(ReadRows(whole, 0, 0, 23).ok());
}

TEST_F(DamageTest, ADirectoryThatSomebodyElseRemovedIsDataLossAndItsNameCanBeFreed) {
  Record("a");
  // `rm -r` removes files in this way.
  const auto remove = [&](const std::string& name) {
    auto root = disk_.root();
    auto directory = root->OpenDirectory(name);
    const auto entries = (*directory)->List();
    for (const DirectoryEntry& entry : *entries) ASSERT_TRUE((*directory)->Remove(entry.name).ok());
    ASSERT_TRUE(root->RemoveDirectory(name).ok());
  };
  remove("a");
  EXPECT_EQ(catalog_->OpenReader("a").status().code(), absl::StatusCode::kDataLoss);
  const absl::Status status = catalog_->Continue("a").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("DeleteRecording frees its name"));
  EXPECT_TRUE(catalog_->Delete("a").ok());
  EXPECT_EQ(catalog_->used_bytes(), 0);
  Record("a");

  auto writer = catalog_->Create(RowsSource::Request("b", kPoints, Dtype::kFloat32));
  ASSERT_TRUE(kSource.SendTo(**writer, 1).ok());
  remove("b");
  absl::Status sent = kSource.SendTo(**writer);
  if (sent.ok()) sent = (*writer)->Close(RecordingState::kComplete, absl::OkStatus());
  EXPECT_EQ(sent.code(), absl::StatusCode::kDataLoss) << sent;
  EXPECT_THAT(sent.message(), HasSubstr("was removed by another program"));
}

TEST_F(DamageTest, RecordingsWithoutRowsCountAgainstTheQuota) {
  Open({100'000, 0, 256});
  absl::Status status;
  int made = 0;
  for (; status.ok() && made < 1000; ++made) {
    auto writer = catalog_->Create(RowsSource::Request(absl::StrCat("a", made), kPoints, Dtype::kFloat32));
    status = writer.status();
    if (!status.ok()) break;
    ASSERT_TRUE((*writer)->Close(RecordingState::kStopped, absl::OkStatus()).ok());
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << made;
  EXPECT_THAT(status.message(), HasSubstr("--recordings-quota-bytes"));
  EXPECT_GT(made, 2);
  EXPECT_LT(made, 20);
  const int64_t used = catalog_->used_bytes();
  EXPECT_LE(used, 100'000);
  // After a new start the count is the same, and what is removed counts no more.
  Open({100'000, 0, 256});
  EXPECT_EQ(catalog_->used_bytes(), used);
  for (int i = 0; i < made; ++i) ASSERT_TRUE(catalog_->Delete(absl::StrCat("a", i)).ok());
  EXPECT_EQ(catalog_->used_bytes(), 0);
}

TEST_F(DamageTest, NamesInTheDirectoryReachTheLogEscaped) {
  catalog_.reset();
  ASSERT_TRUE(disk_.root()->MakeDirectory("con\x1b[31m\nforged \xff").ok());
  Open();
  ASSERT_EQ(catalog_->notes().size(), 1u);
  EXPECT_THAT(catalog_->notes()[0], HasSubstr("'con\\x1b[31m\\nforged \\xff' is not a recording"));
}

}  // namespace
}  // namespace hookline
