// Tests the promises of merged recordings: they have the rows of their parts in the order of the source, or the merge
// is refused with an error that names both values; and a merge is all or nothing, whenever the power fails.
#include "server/recording/merge.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/status.h"
#include "server/recording/catalog.h"
#include "server/recording/merge_plan.h"
#include "tests/recording/rows_source.h"
#include "tests/support/fake_disk.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Loss = FakeDisk::Loss;

// A shard of 256 bytes holds 4 rows.
const CatalogOptions kOptions = {0, 0, 256};
const std::vector<RecordedHookPoint> kPoints = {{"blocks.0.hook_resid_post", 5, 1000}, {"hook_embed", 3, 1000}};
// A part has 10 rows, from two sequences of 5 tokens.
constexpr int64_t kPartRows = 10;

Manifest Request(const std::string& name, int64_t first_sequence) {
  Manifest manifest = RowsSource::Request(name, kPoints, Dtype::kFloat32);
  manifest.request_digest = absl::StrCat("of sequence ", first_sequence);
  manifest.source = {{"dataset",
                      {{"name", "corpus"},
                       {"fingerprint", "c0"},
                       {"sequence_length", 5},
                       {"first_sequence", first_sequence},
                       {"sequence_count", 2}}}};
  manifest.selection = nlohmann::json::object();
  return manifest;
}

absl::Status Record(Catalog& catalog, const Manifest& request, int64_t rows = kPartRows,
                    RecordingState state = RecordingState::kComplete) {
  ASSIGN_OR_RETURN(const std::unique_ptr<RecordingWriter> writer, catalog.Create(request));
  RETURN_IF_ERROR(RowsSource(rows, 3, 7).SendTo(*writer));
  return writer->Close(state, absl::OkStatus());
}

absl::StatusOr<Manifest> Finish(absl::StatusOr<std::unique_ptr<RecordingMerge>> begun) {
  ASSIGN_OR_RETURN(const std::unique_ptr<RecordingMerge> merge, std::move(begun));
  while (true) {
    ASSIGN_OR_RETURN(const bool done, merge->Advance());
    if (done) return merge->manifest();
  }
}

absl::StatusOr<std::unique_ptr<Catalog>> OpenFolder(FakeDisk& disk, const std::string& folder,
                                                    CatalogOptions options = kOptions) {
  return Catalog::OpenShared(disk.root(), folder, options);
}

class MergeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const std::string folder : {"a", "b", "c"}) {
      auto opened = OpenFolder(disk_, folder);
      ASSERT_TRUE(opened.ok()) << opened.status();
      catalogs_[folder] = *std::move(opened);
    }
  }

  void RecordParts() {
    ASSERT_TRUE(Record(a(), Request("part", 0)).ok());
    ASSERT_TRUE(Record(*catalogs_["b"], Request("part", 2)).ok());
    ASSERT_TRUE(Record(*catalogs_["c"], Request("part", 4)).ok());
  }

  // Returns the error of a merge of two parts, of which the second does not match the first.
  std::string Refusal(const Manifest& second, int64_t rows = kPartRows) {
    EXPECT_TRUE(Record(a(), Request("one", 0)).ok());
    EXPECT_TRUE(Record(a(), second, rows).ok());
    const auto merged = Finish(a().Merge("merged", "", {"one", second.name}));
    EXPECT_EQ(merged.status().code(), absl::StatusCode::kFailedPrecondition) << merged.status();
    EXPECT_EQ(a().Get("merged").status().code(), absl::StatusCode::kNotFound);
    EXPECT_TRUE(a().Delete("one").ok() && a().Delete(second.name).ok());
    return std::string(merged.status().message());
  }

  Catalog& a() { return *catalogs_["a"]; }

  FakeDisk disk_;
  std::map<std::string, std::unique_ptr<Catalog>> catalogs_;
};

TEST_F(MergeTest, PartsOfSeveralServersAreOneRecordingInTheOrderOfTheirSequences) {
  RecordParts();
  const auto merged = Finish(a().Merge("merged", "me", {"c/part", "part", "b/part"}));
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->rows(), 3 * kPartRows);
  EXPECT_EQ(merged->client, "me");
  EXPECT_EQ(merged->source["dataset"]["first_sequence"], 0);
  EXPECT_EQ(merged->source["dataset"]["sequence_count"], 6);
  EXPECT_EQ(merged->hook_points[0].max_activations, 2 * kPartRows + 1000);
  // The parts can be deleted, and the server can start again.
  for (const auto& [folder, catalog] : catalogs_) EXPECT_TRUE(catalog->Delete("part").ok());
  catalogs_["a"].reset();
  auto again = OpenFolder(disk_, "a");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT((*again)->notes(), IsEmpty());
  auto reader = (*again)->OpenReader("merged");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_THAT(Damage(**reader), IsEmpty());
  EXPECT_EQ(FormatManifest((*reader)->manifest()), FormatManifest(*merged));
  for (int point = 0; point < 2; ++point) {
    std::string expected;
    for (int64_t row = 0; row < 3 * kPartRows; ++row) {
      expected += RowsSource::Row(*merged, point, row % kPartRows);
    }
    EXPECT_EQ(*ReadRows(*reader, point, 0, 3 * kPartRows), expected);
    // These rows cross the border of two parts, whose shards are short.
    const int64_t row_bytes = merged->LayoutOf(point).bytes();
    EXPECT_EQ(*ReadRows(*reader, point, 7, 9), expected.substr(7 * row_bytes, 9 * row_bytes));
  }
}

// Its shards are short, so that none stands where it would in a recording of one server.
TEST_F(MergeTest, AShardOfAMergedRecordingIsCheckedOnce) {
  RecordParts();
  ASSERT_TRUE(Finish(a().Merge("merged", "", {"*/part"})).ok());
  const auto read_last_row = [&] { return ReadRows(*a().OpenReader("merged"), 0, 3 * kPartRows - 1, 1); };
  const absl::StatusOr<std::string> row = read_last_row();
  ASSERT_TRUE(row.ok()) << row.status();
  const int64_t before = disk_.read_bytes();
  EXPECT_EQ(read_last_row().value(), *row);
  EXPECT_EQ(disk_.read_bytes() - before, static_cast<int64_t>(row->size()));
}

TEST_F(MergeTest, DamageInAnyShardIsFound) {
  RecordParts();
  const absl::StatusOr<Manifest> merged = Finish(a().Merge("merged", "", {"*/part"}));
  ASSERT_TRUE(merged.ok()) << merged.status();
  const std::shared_ptr<const RecordingReader> reader = *a().OpenReader("merged");
  for (const ShardInfo& shard : merged->shards) {
    const std::string path = absl::StrCat("a/merged/", shard.file);
    const std::string whole = disk_.Files().at(path);
    disk_.Overwrite(path, whole.size() - 1, whole.back() == '?' ? "!" : "?");
    ASSERT_EQ(Damage(*reader).size(), 1u) << shard.file;
    EXPECT_EQ(Damage(*reader)[0].file, shard.file);
    EXPECT_EQ(ReadRows(reader, 0, shard.first_row, 1).status().code(), absl::StatusCode::kDataLoss) << shard.file;
    disk_.Overwrite(path, whole.size() - 1, whole.substr(whole.size() - 1));
  }
}

TEST_F(MergeTest, TheSameMergeAgainFindsItAndAnotherIsRefused) {
  RecordParts();
  const auto merged = Finish(a().Merge("merged", "", {"*/part"}));
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->rows(), 3 * kPartRows);
  const int64_t operations = disk_.operations();
  const auto again = Finish(a().Merge("merged", "", {"b/part", "c/part", "a/part"}));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(FormatManifest(*again), FormatManifest(*merged));
  EXPECT_EQ(disk_.operations(), operations);
  EXPECT_EQ(Finish(a().Merge("merged", "", {"part", "b/part"})).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Finish(a().Merge("part", "", {"part", "b/part"})).status().code(), absl::StatusCode::kAlreadyExists);
  // A merged recording can be a part, too, but cannot be continued.
  EXPECT_TRUE(Finish(a().Merge("all", "", {"merged"})).ok());
  EXPECT_EQ(a().Continue("merged").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(MergeTest, NamesThatAreNotOfRecordingsAreSaid) {
  RecordParts();
  for (const std::string name : {"", "../part", "a/b/part", "*", "b/", "/part"}) {
    const auto merged = Finish(a().Merge("merged", "", {"part", name}));
    EXPECT_EQ(merged.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(FieldOf(merged.status()), "parts[1]") << merged.status();
  }
  for (const std::string name : {"other", "b/other", "*/other", "d/part"}) {
    const auto merged = Finish(a().Merge("merged", "", {"part", name}));
    EXPECT_EQ(merged.status().code(), absl::StatusCode::kNotFound) << name;
    EXPECT_THAT(merged.status().message(), HasSubstr(name));
  }
  EXPECT_EQ(FieldOf(Finish(a().Merge("merged", "", {})).status()), "parts");
  EXPECT_EQ(FieldOf(Finish(a().Merge("a/merged", "", {"part"})).status()), "name");
  FakeDisk disk;
  const auto alone = Catalog::Open(disk.root(), kOptions);
  EXPECT_THAT(Finish((*alone)->Merge("merged", "", {"b/part"})).status().message(), HasSubstr("--recordings-folder"));
}

TEST_F(MergeTest, PartsThatDifferAreRefusedWithBothValues) {
  Manifest second = Request("two", 2);
  second.fingerprint = "f2";
  EXPECT_THAT(Refusal(second), AllOf(HasSubstr("fingerprint"), HasSubstr("ffff"), HasSubstr("f2")));
  second = Request("two", 2);
  second.dtype = Dtype::kFloat16;
  EXPECT_THAT(Refusal(second), HasSubstr("dtype: recording one has float32 and recording two has float16"));
  second = Request("two", 2);
  second.top_k = 2;
  EXPECT_THAT(Refusal(second), HasSubstr("top_k: recording one has 0 and recording two has 2"));
  second = Request("two", 2);
  second.deterministic = false;
  EXPECT_THAT(Refusal(second), HasSubstr("deterministic: recording one has true and recording two has false"));
  second = Request("two", 2);
  second.selection = {{"skip_first", 1}};
  EXPECT_THAT(Refusal(second), HasSubstr("selection: recording one has {} and recording two has {\"skip_first\":1}"));
  second = Request("two", 2);
  second.hook_points[1].name = "hook_pos_embed";
  EXPECT_THAT(Refusal(second), AllOf(HasSubstr("hook_embed"), HasSubstr("hook_pos_embed")));
  second = Request("two", 2);
  second.hook_points[1].width = 4;
  EXPECT_THAT(Refusal(second), HasSubstr("width of hook_embed: recording one has 3 and recording two has 4"));
  second = Request("two", 2);
  second.hook_points.pop_back();
  EXPECT_THAT(Refusal(second), HasSubstr("hook points: recording one has 2 and recording two has 1"));
  for (const auto& [key, value] : std::map<std::string, nlohmann::json>{
           {"name", "other"}, {"fingerprint", "c1"}, {"sequence_length", 6}, {"prepend_token_id", 1}}) {
    second = Request("two", 2);
    second.source["dataset"][key] = value;
    EXPECT_THAT(Refusal(second), AllOf(HasSubstr(absl::StrCat("the dataset's ", key)), HasSubstr(value.dump())));
  }
}

TEST_F(MergeTest, SequencesInBothPartsOrInNoneAreRefused) {
  EXPECT_THAT(Refusal(Request("two", 1)), HasSubstr("sequences 1 to 1 are in both"));
  EXPECT_THAT(Refusal(Request("two", 0)), HasSubstr("are in both"));
  EXPECT_THAT(Refusal(Request("two", 5)), HasSubstr("sequences 2 to 4 are in no part"));
  Manifest second = Request("two", 2);
  second.source["dataset"]["shuffle_seed"] = 7;
  EXPECT_THAT(Refusal(second), HasSubstr("1 times, shuffled"));
  second = Request("two", 2);
  second.source["dataset"]["epochs"] = 2;
  EXPECT_THAT(Refusal(second), HasSubstr("2 times, in order"));
  second = Request("two", 2);
  second.source = {{"tokens", {{"sequences", 2}}}};
  EXPECT_THAT(Refusal(second), HasSubstr("recording two has its sequences from a request"));
  second = Request("two", 2);
  second.source["dataset"].erase("fingerprint");
  EXPECT_THAT(Refusal(second), HasSubstr("does not have its dataset's fingerprint"));
  ASSERT_TRUE(Record(a(), Request("stopped", 2), 5, RecordingState::kStopped).ok());
  EXPECT_THAT(Finish(a().Merge("merged", "", {"stopped"})).status().message(), HasSubstr("stopped is STOPPED"));
}

TEST_F(MergeTest, OnlyTheLastPartMayEndWithABudget) {
  const auto with_budgets = [](const std::string& name, int64_t first, int64_t one, int64_t other) {
    Manifest manifest = Request(name, first);
    manifest.hook_points[0].max_activations = one;
    manifest.hook_points[1].max_activations = other;
    return manifest;
  };
  ASSERT_TRUE(Record(a(), with_budgets("cut", 0, 1000, 8)).ok());
  ASSERT_TRUE(Record(a(), with_budgets("full", 0, 10, 10)).ok());
  ASSERT_TRUE(Record(a(), with_budgets("last", 2, 9, 3)).ok());
  ASSERT_TRUE(Record(a(), Request("behind", 4)).ok());
  EXPECT_THAT(Finish(a().Merge("merged", "", {"cut", "last"})).status().message(),
              AllOf(HasSubstr("recording cut: hook_embed ends with its budget of 8"), HasSubstr("recording last")));
  EXPECT_THAT(Finish(a().Merge("merged", "", {"full", "last", "behind"})).status().message(),
              HasSubstr("recording last: blocks.0.hook_resid_post ends with its budget of 9"));
  // All ten rows of the two sequences are within the budget of the first part.
  const auto merged = Finish(a().Merge("merged", "", {"full", "last"}));
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->RowsOf(0), 19);
  EXPECT_EQ(merged->RowsOf(1), 13);
  EXPECT_EQ(merged->hook_points[1].max_activations, 13);
  EXPECT_THAT(Damage(**a().OpenReader("merged")), IsEmpty());
  // With a selection, the number of a sequence's rows is not known.
  Manifest selected = with_budgets("selected", 0, 10, 10);
  selected.selection = {{"exclude_token_ids", {3}}};
  Manifest next = Request("next", 2);
  next.selection = selected.selection;
  ASSERT_TRUE(Record(a(), selected).ok() && Record(a(), next).ok());
  EXPECT_THAT(Finish(a().Merge("other", "", {"selected", "next"})).status().message(), HasSubstr("budget of 10"));
}

TEST_F(MergeTest, PartsOfOneRangeAreAllThereUnlessABudgetEndsBefore) {
  const auto part = [](const std::string& name, int64_t index, int64_t count, int64_t sequences) {
    const RecordingPart range{index, count, 0, sequences};
    Manifest manifest = Request(name, PartBegin(range, index));
    manifest.source["part"] = PartJson(range);
    manifest.source["dataset"]["sequence_count"] = PartBegin(range, index + 1) - PartBegin(range, index);
    return manifest;
  };
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Record(a(), part(absl::StrCat("p", i), i, 3, 6)).ok());
  ASSERT_TRUE(Record(a(), part("other", 1, 2, 4)).ok());
  ASSERT_TRUE(Record(a(), Request("none", 2)).ok());
  const auto refusal = [&](const std::vector<std::string>& names) {
    return std::string(Finish(a().Merge("merged", "", names)).status().message());
  };
  EXPECT_THAT(refusal({"p0", "p1"}), HasSubstr("of sequences 0 to 5, and the last of them, recording p1, ends with "
                                               "sequence 3"));
  EXPECT_THAT(refusal({"p1", "p2"}), HasSubstr("recording p1, begins with sequence 2"));
  EXPECT_THAT(refusal({"p0", "p2"}), HasSubstr("sequences 2 to 3 are in no part"));
  EXPECT_THAT(refusal({"p0", "other"}), AllOf(HasSubstr("\"count\":3"), HasSubstr("\"count\":2")));
  EXPECT_THAT(refusal({"p0", "none"}), HasSubstr("not a part of a range"));
  EXPECT_TRUE(Finish(a().Merge("merged", "", {"p2", "p0", "p1"})).ok());
  Manifest last = part("last", 1, 3, 6);
  last.hook_points[0].max_activations = last.hook_points[1].max_activations = 7;
  ASSERT_TRUE(Record(a(), last).ok());
  const auto within_budget = Finish(a().Merge("within", "", {"p0", "last"}));
  ASSERT_TRUE(within_budget.ok()) << within_budget.status();
  EXPECT_EQ(within_budget->rows(), 17);
}

TEST_F(MergeTest, ADamagedPartLeavesNoRecording) {
  RecordParts();
  disk_.Overwrite("b/part/rows-000000000004-000000000008.safetensors", 700, "x");
  const auto merged = Finish(a().Merge("merged", "", {"*/part"}));
  EXPECT_EQ(merged.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(merged.status().message(), HasSubstr("recording b/part, shard rows-000000000004"));
  EXPECT_EQ(a().Get("merged").status().code(), absl::StatusCode::kNotFound);
  for (const auto& [path, contents] : disk_.Files()) EXPECT_FALSE(absl::StrContains(path, "merged")) << path;
}

TEST_F(MergeTest, WhileItIsMadeItsNameIsTakenAndGivingUpFreesIt) {
  RecordParts();
  const int64_t used = a().used_bytes();
  auto merge = a().Merge("merged", "", {"*/part"});
  ASSERT_TRUE(merge.ok()) << merge.status();
  ASSERT_FALSE(*(*merge)->Advance());
  EXPECT_EQ((*a().Get("merged"))->state, RecordingState::kRunning);
  EXPECT_EQ(a().OpenReader("merged").status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(a().Merge("merged", "", {"*/part"}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(a().Delete("merged").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_GT(a().used_bytes(), used + 3 * kPartRows * 32);
  merge->reset();
  EXPECT_EQ(a().Get("merged").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(a().used_bytes(), used);
  EXPECT_TRUE(Finish(a().Merge("merged", "", {"*/part"})).ok());
}

TEST_F(MergeTest, ThePartOfAnotherServerMayGoMeanwhile) {
  RecordParts();
  auto merge = a().Merge("merged", "", {"*/part"});
  ASSERT_TRUE(merge.ok()) << merge.status();
  ASSERT_TRUE(catalogs_["b"]->Delete("part").ok());
  const auto merged = Finish(std::move(merge));
  EXPECT_EQ(merged.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(merged.status().message(), HasSubstr("recording b/part was removed while it was merged"));
}

TEST_F(MergeTest, LinkedFilesTakeNoRoomButCountTowardsTheQuota) {
  RecordParts();
  const int64_t used = a().used_bytes();
  catalogs_["a"].reset();
  catalogs_["a"] = *OpenFolder(disk_, "a", {used + 15000, 0, 256});
  const auto merged = Finish(a().Merge("merged", "", {"*/part"}));
  EXPECT_EQ(merged.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(merged.status().message(), HasSubstr("--recordings-quota-bytes"));
}

TEST_F(MergeTest, AFolderIsOfOneServerAndTheDirectoryOfThoseThatShareIt) {
  EXPECT_EQ(OpenFolder(disk_, "a").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Catalog::Open(disk_.root(), kOptions).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(OpenFolder(disk_, "../a").status().code(), absl::StatusCode::kInvalidArgument);
  catalogs_.clear();
  const auto alone = Catalog::Open(disk_.root(), kOptions);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(OpenFolder(disk_, "a").status().code(), absl::StatusCode::kFailedPrecondition);
}

absl::Status RecordAndMerge(FakeDisk& disk) {
  ASSIGN_OR_RETURN(const auto b, OpenFolder(disk, "b"));
  if (!b->Get("part").ok()) RETURN_IF_ERROR(Record(*b, Request("part", 2)));
  ASSIGN_OR_RETURN(const auto a, OpenFolder(disk, "a"));
  if (!a->Get("part").ok()) RETURN_IF_ERROR(Record(*a, Request("part", 0)));
  return Finish(a->Merge("merged", "", {"part", "b/part"})).status();
}

class MergeCrashTest : public ::testing::TestWithParam<Loss> {};

INSTANTIATE_TEST_SUITE_P(Losses, MergeCrashTest,
                         ::testing::Values(Loss::kNothing, Loss::kAll, Loss::kContents, Loss::kRandom));

TEST_P(MergeCrashTest, CutOffAtAnyOperationItIsThereWholeOrNotAtAllAndCanBeMadeAgain) {
  FakeDisk undisturbed;
  ASSERT_TRUE(Record(**OpenFolder(undisturbed, "b"), Request("part", 2)).ok());
  ASSERT_TRUE(Record(**OpenFolder(undisturbed, "a"), Request("part", 0)).ok());
  const int64_t begin = undisturbed.operations();
  ASSERT_TRUE(RecordAndMerge(undisturbed).ok());
  ASSERT_GT(undisturbed.operations(), begin + 10);
  for (int64_t operation = begin + 1; operation <= undisturbed.operations(); ++operation) {
    for (int repeat = 0; repeat < (GetParam() == Loss::kRandom ? 8 : 1); ++repeat) {
      SCOPED_TRACE(absl::StrCat("operation ", operation, " of ", undisturbed.operations(), ", seed ", repeat));
      FakeDisk disk(repeat);
      ASSERT_TRUE(Record(**OpenFolder(disk, "b"), Request("part", 2)).ok());
      ASSERT_TRUE(Record(**OpenFolder(disk, "a"), Request("part", 0)).ok());
      disk.FailAt(operation);
      ASSERT_FALSE(RecordAndMerge(disk).ok());
      disk.LosePower(GetParam());
      {
        const auto a = OpenFolder(disk, "a");
        ASSERT_TRUE(a.ok()) << a.status();
        EXPECT_THAT((*a)->notes(), IsEmpty());
        for (const std::string name : {"part", "merged"}) {
          auto reader = (*a)->OpenReader(name);
          if (name == "merged" && absl::IsNotFound(reader.status())) continue;
          ASSERT_TRUE(reader.ok()) << reader.status();
          EXPECT_THAT(Damage(**reader), IsEmpty());
        }
        const auto b = OpenFolder(disk, "b");
        EXPECT_THAT(Damage(**(*b)->OpenReader("part")), IsEmpty());
      }
      const absl::Status again = RecordAndMerge(disk);
      ASSERT_TRUE(again.ok()) << again;
      EXPECT_EQ(disk.Files().size(), undisturbed.Files().size());
    }
  }
}

}  // namespace
}  // namespace hookline
