// Tests the promises of a recording when the power fails, and when the disk is full or fails.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/status.h"
#include "server/recording/catalog.h"
#include "tests/recording/rows_source.h"
#include "tests/support/fake_disk.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Loss = FakeDisk::Loss;

const std::vector<RecordedHookPoint> kPoints = {{"blocks.0.hook_resid_post", 5, 23}, {"hook_embed", 3, 9}};
const CatalogOptions kOptions = {0, 0, 256};
const RowsSource kSource(21, 5, 12);
constexpr char kName[] = "a";

// Runs a session that stops once, is continued, cut back, and continued to its end. Returns the first error.
absl::Status WriteAll(FakeDisk& disk) {
  ASSIGN_OR_RETURN(auto catalog, Catalog::Open(disk.root(), kOptions));
  if (catalog->Get(kName).ok()) {
    const auto manifest = *catalog->Get(kName);
    if (manifest->state == RecordingState::kComplete) return absl::OkStatus();
    ASSIGN_OR_RETURN(auto writer, catalog->Continue(kName));
    RETURN_IF_ERROR(kSource.SendTo(*writer));
    return writer->Close(RecordingState::kComplete, absl::OkStatus());
  }
  {
    ASSIGN_OR_RETURN(auto writer, catalog->Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32)));
    RETURN_IF_ERROR(kSource.SendTo(*writer, 3));
    RETURN_IF_ERROR(writer->Close(RecordingState::kStopped, absl::OkStatus()));
  }
  {
    ASSIGN_OR_RETURN(auto writer, catalog->Continue(kName));
    RETURN_IF_ERROR(kSource.SendTo(*writer, 1));
    RETURN_IF_ERROR(writer->Close(RecordingState::kStopped, absl::OkStatus()));
  }
  ASSIGN_OR_RETURN(auto writer, catalog->Continue(kName, ResumePoint{10, "10"}));
  RETURN_IF_ERROR(kSource.SendTo(*writer));
  return writer->Close(RecordingState::kComplete, absl::OkStatus());
}

std::map<std::string, std::string> Shards(const FakeDisk& disk) {
  auto files = disk.Files();
  files.erase(absl::StrCat(kName, "/manifest.json"));
  return files;
}

// Returns the manifest without its times.
std::string TimelessManifest(const FakeDisk& disk) {
  auto manifest = ParseManifest(disk.Files().at(absl::StrCat(kName, "/manifest.json")));
  if (!manifest.ok()) return manifest.status().ToString();
  manifest->create_time = manifest->update_time = absl::UnixEpoch();
  return FormatManifest(*manifest);
}

class CrashTest : public ::testing::TestWithParam<Loss> {};

std::string LossName(const ::testing::TestParamInfo<Loss>& info) {
  const std::vector<std::string> names = {"Nothing", "All", "Contents", "Random"};
  return names[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Losses, CrashTest,
                         ::testing::Values(Loss::kNothing, Loss::kAll, Loss::kContents, Loss::kRandom), LossName);

TEST_P(CrashTest, AtEveryOperationWhatTheManifestNamesIsWholeAndContinuesToTheSameBytes) {
  FakeDisk undisturbed;
  {
    auto catalog = Catalog::Open(undisturbed.root(), kOptions);
    auto writer = (*catalog)->Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32));
    ASSERT_TRUE(kSource.SendTo(**writer).ok());
    ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
  }
  FakeDisk once;
  ASSERT_TRUE(WriteAll(once).ok());
  EXPECT_EQ(Shards(once), Shards(undisturbed));
  EXPECT_EQ(TimelessManifest(once), TimelessManifest(undisturbed));
  ASSERT_GT(once.operations(), 100);
  const int repeats = GetParam() == Loss::kRandom ? 8 : 1;
  for (int64_t operation = 1; operation <= once.operations(); ++operation) {
    for (int repeat = 0; repeat < repeats; ++repeat) {
      SCOPED_TRACE(absl::StrCat("operation ", operation, " of ", once.operations(), ", seed ", repeat));
      FakeDisk disk(repeat);
      disk.FailAt(operation);
      ASSERT_FALSE(WriteAll(disk).ok());
      disk.LosePower(GetParam());
      {
        auto catalog = Catalog::Open(disk.root(), kOptions);
        ASSERT_TRUE(catalog.ok()) << catalog.status();
        EXPECT_THAT((*catalog)->notes(), IsEmpty());
        if (auto manifest = (*catalog)->Get(kName); manifest.ok()) {
          EXPECT_NE((*manifest)->state, RecordingState::kRunning);
          EXPECT_NE((*manifest)->state, RecordingState::kFailed) << (*manifest)->error;
          auto reader = (*catalog)->OpenReader(kName);
          ASSERT_TRUE(reader.ok()) << reader.status();
          EXPECT_THAT(Damage(**reader), IsEmpty());
          // Only the files that the manifest names are left.
          EXPECT_EQ(Shards(disk).size(), (*manifest)->shards.size());
        } else {
          EXPECT_EQ(manifest.status().code(), absl::StatusCode::kNotFound);
          EXPECT_THAT(disk.Files(), IsEmpty());
        }
      }
      const absl::Status finished = WriteAll(disk);
      ASSERT_TRUE(finished.ok()) << finished;
      EXPECT_EQ(Shards(disk), Shards(undisturbed));
      EXPECT_EQ(TimelessManifest(disk), TimelessManifest(undisturbed));
    }
  }
}

TEST_P(CrashTest, ARemovalCutOffAtAnyOperationLeavesAWholeRecordingOrNone) {
  for (int64_t after = 1; after < 20; ++after) {
    FakeDisk disk(after);
    ASSERT_TRUE(WriteAll(disk).ok());
    auto catalog = Catalog::Open(disk.root(), kOptions);
    disk.FailAt(disk.operations() + after);
    const bool removed = (*catalog)->Delete(kName).ok();
    catalog->reset();
    disk.LosePower(GetParam());
    catalog = Catalog::Open(disk.root(), kOptions);
    ASSERT_TRUE(catalog.ok());
    auto reader = (*catalog)->OpenReader(kName);
    if (removed) {
      EXPECT_EQ(reader.status().code(), absl::StatusCode::kNotFound);
    }
    if (reader.ok()) {
      EXPECT_THAT(Damage(**reader), IsEmpty());
    } else {
      EXPECT_THAT(disk.Files(), IsEmpty());
    }
  }
}

TEST(FullDiskTest, FinishedShardsStayAndTheRecordingContinuesOnceThereIsRoom) {
  FakeDisk undisturbed;
  ASSERT_TRUE(WriteAll(undisturbed).ok());
  for (int64_t capacity = 1000; capacity < undisturbed.used_bytes(); capacity += 97) {
    SCOPED_TRACE(capacity);
    FakeDisk disk;
    disk.set_capacity(capacity);
    {
      auto catalog = Catalog::Open(disk.root(), kOptions);
      ASSERT_TRUE(catalog.ok());
      auto writer = (*catalog)->Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32));
      if (!writer.ok()) {
        EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted);
        EXPECT_THAT(disk.Files(), IsEmpty());
        continue;
      }
      absl::Status sent = kSource.SendTo(**writer);
      const absl::Status closed =
          (*writer)->Close(sent.ok() ? RecordingState::kComplete : RecordingState::kFailed, sent);
      if (sent.ok()) sent = closed;
      if (sent.ok()) continue;  // the recording fits
      EXPECT_EQ(sent.code(), absl::StatusCode::kResourceExhausted) << sent;
      const auto manifest = *(*catalog)->Get(kName);
      EXPECT_EQ(manifest->state, RecordingState::kFailed);
      EXPECT_FALSE(manifest->error.empty());
      EXPECT_EQ(Shards(disk).size(), manifest->shards.size());
      EXPECT_GE((*catalog)->used_bytes(), manifest->bytes());
      writer->reset();
      auto reader = (*catalog)->OpenReader(kName);
      ASSERT_TRUE(reader.ok());
      EXPECT_THAT(Damage(**reader), IsEmpty());
    }
    disk.set_capacity(int64_t{1} << 40);
    ASSERT_TRUE(WriteAll(disk).ok());
    EXPECT_EQ(Shards(disk), Shards(undisturbed));
  }
}

// Stops once and is continued, as in WriteAll, but closes a session that fails as failed and goes on.
void WriteAndCloseWhatFails(Catalog& catalog) {
  const auto write = [](RecordingWriter& writer, int64_t most_groups, RecordingState state) {
    const absl::Status sent = kSource.SendTo(writer, most_groups);
    writer.Close(sent.ok() ? state : RecordingState::kFailed, sent).IgnoreError();
  };
  if (auto writer = catalog.Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32)); writer.ok()) {
    write(**writer, 3, RecordingState::kStopped);
  }
  if (auto writer = catalog.Continue(kName); writer.ok()) write(**writer, 1, RecordingState::kStopped);
  if (auto writer = catalog.Continue(kName, ResumePoint{10, "10"}); writer.ok()) {
    write(**writer, 100, RecordingState::kComplete);
  }
}

TEST(FullDiskTest, OneOperationThatFailsLosesNothingThatWasFinishedNowOrAfterAPowerLoss) {
  FakeDisk undisturbed;
  ASSERT_TRUE(WriteAll(undisturbed).ok());
  for (const Loss loss : {Loss::kNothing, Loss::kAll, Loss::kContents}) {
    for (int64_t operation = 1; operation <= undisturbed.operations(); ++operation) {
      SCOPED_TRACE(absl::StrCat("operation ", operation, ", loss ", static_cast<int>(loss)));
      FakeDisk disk;
      disk.FailOnceAt(operation, absl::ResourceExhaustedError("No space left on device"));
      {
        auto catalog = Catalog::Open(disk.root(), kOptions);
        ASSERT_TRUE(catalog.ok());
        WriteAndCloseWhatFails(**catalog);
        if ((*catalog)->Get(kName).ok()) {
          auto reader = (*catalog)->OpenReader(kName);
          ASSERT_TRUE(reader.ok()) << reader.status();
          EXPECT_THAT(Damage(**reader), IsEmpty());
        }
      }
      disk.LosePower(loss);
      {
        auto catalog = Catalog::Open(disk.root(), kOptions);
        ASSERT_TRUE(catalog.ok());
        EXPECT_THAT((*catalog)->notes(), IsEmpty());
        if ((*catalog)->Get(kName).ok()) {
          EXPECT_THAT(Damage(**(*catalog)->OpenReader(kName)), IsEmpty());
        }
      }
      if (disk.Files().empty()) continue;
      ASSERT_TRUE(WriteAll(disk).ok());
      EXPECT_EQ(Shards(disk), Shards(undisturbed));
    }
  }
}

TEST(FullDiskTest, QuotaAndFloorOfFreeSpaceAreResourceExhaustedWithTheNumbers) {
  FakeDisk disk;
  {
    auto catalog = Catalog::Open(disk.root(), {13000, 0, 256});
    auto writer = (*catalog)->Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32));
    const absl::Status sent = kSource.SendTo(**writer);
    EXPECT_EQ(sent.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(sent.message(), HasSubstr("quota is 13000"));
    EXPECT_TRUE((*writer)->Close(RecordingState::kFailed, sent).ok());
    EXPECT_LE((*catalog)->used_bytes(), 13000 + 1024);
    // The quota also refuses other recordings, and the rows that were written can still be read.
    EXPECT_TRUE((*catalog)->OpenReader(kName).ok());
  }
  disk.set_capacity(disk.used_bytes() + 4000);
  auto catalog = Catalog::Open(disk.root(), {0, 3900, 256});
  auto writer = (*catalog)->Create(RowsSource::Request("b", kPoints, Dtype::kFloat32));
  if (writer.ok()) {
    const absl::Status sent = kSource.SendTo(**writer);
    EXPECT_EQ(sent.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(sent.message(), HasSubstr("3900 stay free"));
    (*writer)->Close(RecordingState::kFailed, sent).IgnoreError();
  } else {
    EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST(ReadOnlyDiskTest, StillReadsAndSaysInterrupted) {
  FakeDisk disk;
  {
    auto catalog = Catalog::Open(disk.root(), kOptions);
    auto writer = (*catalog)->Create(RowsSource::Request(kName, kPoints, Dtype::kFloat32));
    ASSERT_TRUE(kSource.SendTo(**writer).ok());
  }
  disk.FailAt(disk.operations() + 1, absl::ResourceExhaustedError("Read-only file system"));
  auto catalog = Catalog::Open(disk.root(), kOptions);
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_EQ((*(*catalog)->Get(kName))->state, RecordingState::kInterrupted);
  auto reader = (*catalog)->OpenReader(kName);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(ReadRows(*reader, 0, 0, (*reader)->manifest().rows()).ok());
  EXPECT_EQ((*catalog)->Continue(kName).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*catalog)->Create(RowsSource::Request("b", kPoints, Dtype::kFloat32)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(SweepTest, FilesOfOthersAreLeftAlone) {
  FakeDisk disk;
  auto root = disk.root();
  ASSERT_TRUE(root->MakeDirectory("photos").ok());
  auto photos = root->OpenDirectory("photos");
  ASSERT_TRUE((*photos)->Create("cat.jpg").ok());
  ASSERT_TRUE((*photos)->Create("left.tmp").ok());
  ASSERT_TRUE(root->Create("notes.txt").ok());
  ASSERT_TRUE(root->MakeDirectory("broken").ok());
  auto broken = root->OpenDirectory("broken");
  ASSERT_TRUE((*broken)->Create("manifest.json").ok());
  auto catalog = Catalog::Open(disk.root(), kOptions);
  ASSERT_TRUE(catalog.ok());
  EXPECT_EQ((*catalog)->notes().size(), 3u);
  EXPECT_EQ(disk.Files().count("photos/cat.jpg"), 1u);
  EXPECT_EQ(disk.Files().count("notes.txt"), 1u);
  EXPECT_EQ((*catalog)->Get("broken").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ((*catalog)->Get("photos").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*catalog)->Create(RowsSource::Request("photos", kPoints, Dtype::kFloat32)).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(disk.Files().count("photos/cat.jpg"), 1u);
  EXPECT_TRUE((*catalog)->Delete("broken").ok());
}

}  // namespace
}  // namespace hookline
