// Tests the promises of a recording when nothing goes wrong.
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/shuffled_order.h"
#include "server/recording/catalog.h"
#include "tests/recording/catalog_fixture.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Reads a shard by FORMAT.md and nothing else.
void CheckShardByItsDocument(const std::string& file, const Manifest& manifest, const nlohmann::json& shard) {
  ASSERT_GE(file.size(), 8u);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  ASSERT_LE(8 + header_bytes, file.size());
  EXPECT_EQ((8 + header_bytes) % 64, 0u);
  ASSERT_EQ(file[8], '{');
  const nlohmann::ordered_json header = nlohmann::ordered_json::parse(file.substr(8, header_bytes));
  const absl::string_view data = absl::string_view(file).substr(8 + header_bytes);
  const int64_t first_row = shard["first_row"];
  const int64_t rows = shard["rows"];
  EXPECT_EQ(header["__metadata__"]["first_row"], absl::StrCat(first_row));
  EXPECT_EQ(header["__metadata__"]["fingerprint"], manifest.fingerprint);
  size_t end = 0;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : header.items()) {
    names.push_back(name);
    if (name == "__metadata__") continue;
    EXPECT_EQ(tensor["data_offsets"][0], end) << name;
    end = tensor["data_offsets"][1];
  }
  EXPECT_EQ(end, data.size());
  std::vector<std::string> expected = {"__metadata__", "provenance/sequence", "provenance/token_id",
                                       "provenance/position", kPoints[0].name};
  if (first_row < kPoints[1].max_activations) expected.push_back(kPoints[1].name);
  EXPECT_EQ(names, expected);
  const auto values = [&](const std::string& name, const char* dtype, const nlohmann::ordered_json& shape) {
    EXPECT_EQ(header[name]["dtype"], dtype);
    EXPECT_EQ(header[name]["shape"], shape) << name;
    const size_t begin = header[name]["data_offsets"][0];
    return data.substr(begin, header[name]["data_offsets"][1].get<size_t>() - begin);
  };
  const auto sequence = values("provenance/sequence", "I64", {rows});
  const auto token_id = values("provenance/token_id", "I64", {rows});
  const auto position = values("provenance/position", "I32", {rows});
  for (int64_t i = 0; i < rows; ++i) {
    int64_t s = 0, t = 0;
    int32_t p = 0;
    std::memcpy(&s, sequence.data() + 8 * i, 8);
    std::memcpy(&t, token_id.data() + 8 * i, 8);
    std::memcpy(&p, position.data() + 4 * i, 4);
    EXPECT_EQ(s, RowsSource::Sequence(first_row + i));
    EXPECT_EQ(t, static_cast<int64_t>(RowsSource::TokenId(first_row + i)));
    EXPECT_EQ(p, RowsSource::Position(first_row + i));
  }
  for (int h = 0; h < 2; ++h) {
    const int64_t kept = std::min(rows, kPoints[h].max_activations - first_row);
    if (kept <= 0) continue;
    const std::map<Dtype, const char*> dtypes = {
        {Dtype::kFloat32, "F32"}, {Dtype::kBFloat16, "BF16"}, {Dtype::kFloat16, "F16"}};
    const bool is_plain = manifest.LayoutOf(h).is_plain();
    const char* dtype = is_plain ? dtypes.at(manifest.dtype) : "U8";
    const int64_t width = is_plain ? kPoints[h].width : manifest.LayoutOf(h).bytes();
    std::string wanted;
    for (int64_t i = 0; i < kept; ++i) wanted += RowsSource::Row(manifest, h, first_row + i);
    EXPECT_EQ(values(kPoints[h].name, dtype, {kept, width}), wanted);
  }
}

TEST_F(RecordingTest, FilesAreWhatTheFormatSays) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat8E4M3, Dtype::kInt8}) {
    const std::string name(DtypeName(dtype));
    Record(name, kSource, dtype);
    const auto files = disk_.Files();
    const nlohmann::json json = nlohmann::json::parse(files.at(name + "/manifest.json"));
    EXPECT_EQ(json["state"], "COMPLETE");
    EXPECT_EQ(json["rows"], 23);
    EXPECT_EQ(json["hook_points"][0]["rows"], 23);
    EXPECT_EQ(json["hook_points"][1]["rows"], 9);
    EXPECT_EQ(json["dtype"], name);
    EXPECT_EQ(json["source"]["dataset"]["name"], "corpus");
    EXPECT_EQ(json["selection"]["skip_first"], 1);
    int64_t row = 0;
    std::string previous;
    for (const auto& shard : json["shards"]) {
      EXPECT_EQ(shard["first_row"], row);
      row += shard["rows"].get<int64_t>();
      EXPECT_LT(previous, shard["file"].get<std::string>());
      previous = shard["file"];
      const std::string& file = files.at(name + "/" + previous);
      EXPECT_EQ(file.size(), shard["bytes"]);
      CheckShardByItsDocument(file, **catalog_->Get(name), shard);
    }
    EXPECT_EQ(row, 23);
    EXPECT_EQ(std::count_if(files.begin(), files.end(),
                            [&](const auto& file) { return absl::StartsWith(file.first, name + "/"); }),
              1 + static_cast<int>(json["shards"].size()));
  }
}

TEST_F(RecordingTest, ManifestsSurviveTheirText) {
  Record("a", kSource);
  const Manifest manifest = **catalog_->Get("a");
  auto parsed = ParseManifest(FormatManifest(manifest));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(FormatManifest(*parsed), FormatManifest(manifest));
}

TEST_F(RecordingTest, AManifestThatIsCutOrBentIsDataLossAndNeverACrash) {
  Record("a", kSource);
  const std::string text = FormatManifest(**catalog_->Get("a"));
  for (size_t length = 0; length + 2 < text.size(); length += 7) {
    EXPECT_EQ(ParseManifest(text.substr(0, length)).status().code(), absl::StatusCode::kDataLoss) << length;
  }
  const nlohmann::json whole = nlohmann::json::parse(text);
  for (const auto& [key, value] : whole.items()) {
    nlohmann::json bent = whole;
    bent.erase(key);
    EXPECT_THAT(ParseManifest(bent.dump()).status().message(), HasSubstr(key));
    for (const nlohmann::json& other :
         {nlohmann::json(nullptr), nlohmann::json(-1), nlohmann::json(1e30), nlohmann::json::array({1, "x", nullptr}),
          nlohmann::json::array({nlohmann::json::object()}), nlohmann::json(18446744073709551615u)}) {
      bent[key] = other;
      EXPECT_EQ(ParseManifest(bent.dump()).status().code(), absl::StatusCode::kDataLoss) << key << other;
    }
  }
  nlohmann::json escaping = whole;
  escaping["shards"][0]["file"] = "../../etc/passwd";
  EXPECT_EQ(ParseManifest(escaping.dump()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ParseManifest(std::string(1 << 20, '[')).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RecordingTest, NamesThatAreNoneOfAllowedAreInvalid) {
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("/etc"),
        std::string("../x"), std::string(".hidden"), std::string("-x"), std::string("a b"), std::string("a\0b", 3),
        std::string("\xc3\xa4"), std::string(129, 'a')}) {
    const auto created = catalog_->Create(RowsSource::Request(name, kPoints, Dtype::kFloat32));
    EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(catalog_->Get(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(catalog_->Delete(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(catalog_->OpenReader(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(catalog_->Continue(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_THAT(disk_.Files(), IsEmpty());
  Record("Az09._-" + std::string(121, 'z'), kSource);
}

TEST_F(RecordingTest, HookPointsCannotTakeTheFormatsOwnNames) {
  for (const char* name : {"provenance/sequence", "provenance/x", "__metadata__"}) {
    const auto created = catalog_->Create(RowsSource::Request("a", {{name, 1, 1}}, Dtype::kFloat32));
    EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST_F(RecordingTest, ReadsBackAnyRangeOfRows) {
  Record("a", kSource);
  auto reader = catalog_->OpenReader("a");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const Manifest& manifest = (*reader)->manifest();
  for (int h = 0; h < 2; ++h) {
    for (int64_t first = 0; first < manifest.RowsOf(h); ++first) {
      for (int64_t rows = 1; first + rows <= manifest.RowsOf(h); ++rows) {
        const auto read = ReadRows(*reader, h, first, rows);
        ASSERT_TRUE(read.ok()) << read.status();
        std::string wanted;
        for (int64_t r = first; r < first + rows; ++r) wanted += RowsSource::Row(manifest, h, r);
        ASSERT_EQ(*read, wanted);
      }
    }
  }
}

TEST_F(RecordingTest, RowsFromEverywhereGoWhereTheyAreWantedWithTheirProvenance) {
  Record("a", kSource);
  auto reader = catalog_->OpenReader("a");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const std::vector<RowRange> ranges = {{1, 1, 3}, {2, 2, 0}, {17, 1, 2}};
  const std::vector<int64_t> rows = {2, 3, 17, 1};  // in the order in which they must lie
  std::string values(4 * 5 * 4, '\0');
  ASSERT_TRUE(RowRead::OfHookPoint(*reader, 0, ranges, reinterpret_cast<uint8_t*>(values.data())).Finish().ok());
  std::vector<int64_t> sequence(4), token_id(4);
  std::vector<int32_t> position(4);
  ASSERT_TRUE(
      RowRead::OfProvenance(*reader, ranges, {sequence.data(), token_id.data(), position.data()}).Finish().ok());
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(values.substr(i * 20, 20), RowsSource::Row((*reader)->manifest(), 0, rows[i]));
    EXPECT_EQ(sequence[i], RowsSource::Sequence(rows[i]));
    EXPECT_EQ(position[i], RowsSource::Position(rows[i]));
    EXPECT_EQ(token_id[i], static_cast<int64_t>(RowsSource::TokenId(rows[i])));
  }
}

TEST_F(RecordingTest, VerifyFindsAFlippedBitAnywhere) {
  Record("a", kSource);
  auto files = disk_.Files();
  const auto verify = [&] { return Damage(**catalog_->OpenReader("a")); };
  EXPECT_THAT(verify(), IsEmpty());
  const Manifest manifest = **catalog_->Get("a");
  auto directory = disk_.root()->OpenDirectory("a");
  ASSERT_TRUE(directory.ok());
  const std::string file = manifest.shards[1].file;
  const std::string whole = files.at("a/" + file);
  const auto replace = [&](const std::string& contents) {
    ASSERT_TRUE((*directory)->Remove(file).ok());
    auto written = (*directory)->Create(file);
    ASSERT_TRUE((*written)->WriteAt(0, {reinterpret_cast<const uint8_t*>(contents.data()), contents.size()}).ok());
  };
  for (size_t at = 0; at < whole.size(); at += 13) {
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    replace(flipped);
    const auto damaged = verify();
    ASSERT_EQ(damaged.size(), 1u) << at;
    EXPECT_EQ(damaged[0].file, file);
  }
  replace(whole.substr(0, whole.size() - 1));
  EXPECT_EQ(verify().size(), 1u);
  EXPECT_EQ(ReadRows(*catalog_->OpenReader("a"), 0, 0, 23).status().code(), absl::StatusCode::kDataLoss);
  Open();
  EXPECT_EQ((*catalog_->Get("a"))->state, RecordingState::kFailed);
  EXPECT_EQ(catalog_->Continue("a").status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE((*directory)->Remove(file).ok());
  Open();
  EXPECT_THAT((*catalog_->Get("a"))->error, HasSubstr("missing"));
}

TEST_F(RecordingTest, AShuffledOrderHoldsEachRowOnceAndDependsOnTheSeedAlone) {
  for (const int64_t size : {1, 2, 3, 4, 5, 64, 65, 1000}) {
    const ShuffledOrder order(size, 7);
    std::set<int64_t> seen;
    int64_t in_place = 0;
    bool differs = false;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t row = order[i];
      EXPECT_TRUE(row >= 0 && row < size && seen.insert(row).second);
      EXPECT_EQ(ShuffledOrder(size, 7)[i], row);
      differs |= ShuffledOrder(size, 8)[i] != row;
      in_place += row == i;
    }
    if (size >= 64) {
      EXPECT_TRUE(differs);
      EXPECT_LT(in_place, 10);
    }
  }
}

TEST_F(RecordingTest, RemovalFreesEverythingAndReadersReadOn) {
  Record("a", kSource);
  auto reader = catalog_->OpenReader("a");
  ASSERT_TRUE(reader.ok());
  const int64_t used = catalog_->used_bytes();
  const int64_t shard_bytes = (*catalog_->Get("a"))->bytes();
  EXPECT_GT(used, shard_bytes);
  auto freed = catalog_->Delete("a");
  ASSERT_TRUE(freed.ok()) << freed.status();
  EXPECT_EQ(*freed, shard_bytes);
  EXPECT_EQ(catalog_->used_bytes(), 0);
  EXPECT_THAT(disk_.Files(), IsEmpty());
  EXPECT_EQ(catalog_->Get("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(ReadRows(*reader, 0, 0, 23).ok());
  Record("a", kSource);
}

TEST_F(RecordingTest, OneThatIsBeingWrittenIsNeitherRemovedNorWrittenTwice) {
  auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(catalog_->Delete("a").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(catalog_->Continue("a").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32)).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_F(RecordingTest, ARunningOneIsReadUpToItsFinishedShards) {
  auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
  ASSERT_TRUE(kSource.SendTo(**writer, 2).ok());
  EXPECT_EQ((*writer)->rows(), 10);
  auto reader = catalog_->OpenReader("a");
  ASSERT_TRUE(reader.ok());
  const int64_t shard_rows = (*reader)->manifest().shard_rows;
  EXPECT_EQ((*reader)->manifest().rows(), 10 / shard_rows * shard_rows);
  EXPECT_TRUE(ReadRows(*reader, 0, 0, (*reader)->manifest().rows()).ok());
}

TEST_F(RecordingTest, RowsOutOfOrderAreRefused) {
  auto writer = catalog_->Create(RowsSource::Request("a", kPoints, Dtype::kFloat32));
  RowsToRecord rows;
  const std::string values(5 * 4, 'v');
  const std::vector<absl::Span<const uint8_t>> data = {
      {reinterpret_cast<const uint8_t*>(values.data()), values.size()}};
  const std::vector<int64_t> sequence = {0};
  const std::vector<int32_t> position = {0};
  const std::vector<uint32_t> token_id = {0};
  rows.first_row = 1;
  rows.rows = 1;
  rows.data = data;
  rows.sequence = sequence;
  rows.position = position;
  rows.token_id = token_id;
  EXPECT_EQ((*writer)->Append(rows).code(), absl::StatusCode::kInternal);
  EXPECT_EQ((*writer)->Append(rows).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*writer)->Close(RecordingState::kFailed, absl::InternalError("order")).ok());
  EXPECT_EQ((*catalog_->Get("a"))->error, "order");
}

TEST_F(RecordingTest, StoppedAtAnyRowGroupAndContinuedItIsTheSame) {
  Record("whole", kSource);
  const auto whole = disk_.Files();
  for (int64_t groups = 0; groups < 6; ++groups) {
    const std::string name = absl::StrCat("stopped", groups);
    {
      auto writer = catalog_->Create(RowsSource::Request(name, kPoints, Dtype::kFloat32));
      ASSERT_TRUE(kSource.SendTo(**writer, groups).ok());
      ASSERT_TRUE((*writer)->Close(RecordingState::kStopped, absl::OkStatus()).ok());
    }
    const auto stopped = *catalog_->Get(name);
    EXPECT_EQ(stopped->state, RecordingState::kStopped);
    EXPECT_EQ(stopped->rows(), stopped->resume_row);
    EXPECT_THAT(Damage(**catalog_->OpenReader(name)), IsEmpty());
    Open();
    auto writer = catalog_->Continue(name);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(kSource.SendTo(**writer).ok());
    ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
    writer->reset();
    for (const auto& [path, contents] : disk_.Files()) {
      if (!absl::StartsWith(path, name + "/") || absl::EndsWith(path, "manifest.json")) continue;
      EXPECT_EQ(contents, whole.at("whole" + path.substr(name.size()))) << path;
    }
    EXPECT_EQ((*catalog_->Get(name))->shards.size(), (*catalog_->Get("whole"))->shards.size());
  }
}

TEST_F(RecordingTest, CutBackToAnyRowAndContinuedItIsTheSame) {
  Record("whole", kSource);
  const auto whole = disk_.Files();
  for (int64_t row = 0; row <= 22; ++row) {
    const std::string name = absl::StrCat("cut", row);
    {
      auto writer = catalog_->Create(RowsSource::Request(name, kPoints, Dtype::kFloat32));
      ASSERT_TRUE(kSource.SendTo(**writer, 5).ok());
      ASSERT_TRUE((*writer)->Close(RecordingState::kStopped, absl::OkStatus()).ok());
    }
    EXPECT_EQ((*catalog_->Get(name))->rows(), 22);
    EXPECT_EQ(catalog_->Continue(name, ResumePoint{23, "23"}).status().code(), absl::StatusCode::kFailedPrecondition);
    auto writer = catalog_->Continue(name, ResumePoint{row, absl::StrCat(row)});
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_EQ((*writer)->rows(), row);
    EXPECT_THAT(Damage(**catalog_->OpenReader(name)), IsEmpty());
    ASSERT_TRUE(kSource.SendTo(**writer).ok());
    ASSERT_TRUE((*writer)->Close(RecordingState::kComplete, absl::OkStatus()).ok());
    writer->reset();
    std::vector<std::string> files;
    for (const auto& [path, contents] : disk_.Files()) {
      if (!absl::StartsWith(path, name + "/") || absl::EndsWith(path, "manifest.json")) continue;
      EXPECT_EQ(contents, whole.at("whole" + path.substr(name.size()))) << path;
      files.push_back(path);
    }
    EXPECT_EQ(files.size(), (*catalog_->Get("whole"))->shards.size());
    ASSERT_TRUE(catalog_->Delete(name).ok());
  }
}

TEST_F(RecordingTest, PagesFollowTheNames) {
  for (const char* name : {"b", "a", "c"}) Record(name, kSource);
  const auto names = [&](absl::string_view after, int64_t count) {
    std::vector<std::string> names;
    for (const auto& manifest : catalog_->List(after, count)) names.push_back(manifest->name);
    return names;
  };
  EXPECT_THAT(names("", 2), ElementsAre("a", "b"));
  EXPECT_THAT(names("b", 2), ElementsAre("c"));
}

TEST_F(RecordingTest, ASecondCatalogOfTheSameDirectoryIsRefused) {
  EXPECT_EQ(Catalog::Open(disk_.root(), kOptions).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace hookline
