#include "server/dataset/dataset.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/status.h"
#include "server/formats/npy.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string WriteFile(const std::string& name, absl::string_view bytes) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

template <typename T>
std::string Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Returns a file as numpy.lib.format writes it in version 1.0.
std::string Npy(absl::string_view header, absl::string_view data) {
  std::string text(header);
  text.append(63 - (10 + text.size()) % 64, ' ');
  text.push_back('\n');
  std::string file("\x93NUMPY\x01\x00", 8);
  file.push_back(static_cast<char>(text.size() & 0xff));
  file.push_back(static_cast<char>(text.size() >> 8));
  return absl::StrCat(file, text, data);
}

std::string Header(absl::string_view descr, absl::string_view shape, absl::string_view fortran = "False") {
  return absl::StrCat("{'descr': '", descr, "', 'fortran_order': ", fortran, ", 'shape': ", shape, ", }");
}

constexpr int64_t kVocabularySize = 50'000;

std::vector<uint32_t> Sequence(const Dataset& dataset, int64_t index, int64_t length,
                               int64_t vocabulary_size = kVocabularySize) {
  std::vector<uint32_t> ids(length);
  const absl::Status read = dataset.ReadSequence(index, vocabulary_size, absl::MakeSpan(ids));
  EXPECT_TRUE(read.ok()) << read;
  return ids;
}

TEST(DatasetTest, AStreamIsCutIntoSequencesAndItsPartialLastOneDropped) {
  const std::string path =
      WriteFile("stream.npy", Npy(Header("<u2", "(7,)"), Bytes<uint16_t>({1, 2, 3, 40000, 5, 6, 7})));
  auto dataset = Dataset::Open("d", path);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ((*dataset)->tokens(), 7);
  EXPECT_EQ((*dataset)->row_length(), 0);
  EXPECT_EQ((*dataset)->largest_token_id(), 40000u);
  auto cut = (*dataset)->CutInto(3);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->sequence_count, 2);
  EXPECT_THAT(Sequence(**dataset, 1, 3), ElementsAre(40000, 5, 6));
}

TEST(DatasetTest, TheFingerprintTellsTokensTypesAndRowsApart) {
  const auto fingerprint = [](const std::string& name, const std::string& bytes, const std::string& type = "") {
    auto dataset = Dataset::Open("d", WriteFile(name, bytes) + type);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return (*dataset)->fingerprint();
  };
  const std::string tokens = Bytes<uint16_t>({1, 2, 3, 4});
  const std::string stream = fingerprint("a.npy", Npy(Header("<u2", "(4,)"), tokens));
  EXPECT_EQ(stream, fingerprint("b.bin", tokens, ":uint16"));
  EXPECT_NE(stream, fingerprint("c.bin", Bytes<uint16_t>({1, 2, 4, 3}), ":uint16"));
  EXPECT_NE(stream, fingerprint("d.bin", tokens, ":uint32"));
  EXPECT_NE(stream, fingerprint("e.npy", Npy(Header("<u2", "(2, 2)"), tokens)));
  // These are more values than are hashed at once.
  std::vector<uint8_t> many(200'000, 7);
  const std::string before = fingerprint("f.bin", Bytes<uint8_t>(many), ":uint8");
  many[150'000] = 8;
  EXPECT_NE(before, fingerprint("g.bin", Bytes<uint8_t>(many), ":uint8"));
}

TEST(DatasetTest, RowsAreSequences) {
  const std::string path = WriteFile("rows.npy", Npy(Header("<i8", "(2, 3)"), Bytes<int64_t>({1, 2, 3, 4, 5, 6})));
  auto dataset = Dataset::Open("d", path);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ((*dataset)->CutInto(0)->sequence_length, 3);
  EXPECT_EQ((*dataset)->CutInto(3)->sequence_count, 2);
  EXPECT_THAT(Sequence(**dataset, 1, 3), ElementsAre(4, 5, 6));
  EXPECT_EQ((*dataset)->CutInto(2).status().message(),
            "sequence_length: 2 was asked for, but the rows of dataset 'd' have 3 tokens; give that or 0");
}

TEST(DatasetTest, EveryTokenTypeIsReadFromNpyAndFromBin) {
  const struct {
    std::string descr, name, data;
  } kTypes[] = {{"|u1", "uint8", Bytes<uint8_t>({9, 200})}, {"<u2", "uint16", Bytes<uint16_t>({9, 200})},
                {"<i4", "int32", Bytes<int32_t>({9, 200})}, {"<u4", "uint32", Bytes<uint32_t>({9, 200})},
                {"<i8", "int64", Bytes<int64_t>({9, 200})}, {"<u8", "uint64", Bytes<uint64_t>({9, 200})}};
  for (const auto& type : kTypes) {
    auto npy = Dataset::Open("d", WriteFile("t.npy", Npy(Header(type.descr, "(2,)"), type.data)));
    ASSERT_TRUE(npy.ok()) << npy.status();
    EXPECT_THAT(Sequence(**npy, 0, 2), ElementsAre(9, 200)) << type.name;
    EXPECT_EQ(TokenDtypeName((*npy)->dtype()), type.name);
    auto bin = Dataset::Open("d", absl::StrCat(WriteFile("t.bin", type.data), ":", type.name));
    ASSERT_TRUE(bin.ok()) << bin.status();
    EXPECT_THAT(Sequence(**bin, 0, 2), ElementsAre(9, 200)) << type.name;
  }
}

TEST(DatasetTest, ALengthThatAStreamCannotGiveIsNamed) {
  auto dataset = Dataset::Open("d", absl::StrCat(WriteFile("s.bin", Bytes<uint16_t>({1, 2})), ":uint16"));
  ASSERT_TRUE(dataset.ok());
  for (int64_t length : {-1, 0, 3}) {
    absl::Status status = (*dataset)->CutInto(length).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              absl::StrCat("sequence_length: ", length,
                           " was asked for, but dataset 'd' is a stream of 2 tokens; give 1 to that"));
    EXPECT_EQ(FieldOf(status), "sequence_length");
  }
}

TEST(DatasetTest, AValueThatIsNotAnIdIsRefusedByIndex) {
  auto negative = Dataset::Open("d", WriteFile("n.npy", Npy(Header("<i4", "(3,)"), Bytes<int32_t>({1, -2, 3}))));
  EXPECT_EQ(negative.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(negative.status().message()), HasSubstr("token 1 is -2"));
  auto large = Dataset::Open("d", WriteFile("l.npy", Npy(Header("<i8", "(1,)"), Bytes<int64_t>({1LL << 32}))));
  EXPECT_THAT(std::string(large.status().message()), HasSubstr("token 0 is 4294967296"));
  auto unsigned_large =
      Dataset::Open("d", WriteFile("u.npy", Npy(Header("<u8", "(2,)"), Bytes<uint64_t>({1, ~uint64_t{0}}))));
  EXPECT_THAT(std::string(unsigned_large.status().message()), HasSubstr("token 1 is 18446744073709551615"));
}

TEST(DatasetTest, WhatIsNoIdIsNamedByRowAndColumnWhereTheFileHasThem) {
  auto rows = Dataset::Open("d", WriteFile("r.npy", Npy(Header("<i4", "(2, 3)"), Bytes<int32_t>({1, 2, 3, 4, -5, 6}))));
  EXPECT_THAT(std::string(rows.status().message()), HasSubstr("row 1, column 1: token 4 is -5"));
}

TEST(DatasetTest, IdsWithoutAHeaderAreNotReadUnderNumpysName) {
  const std::string ids = Bytes<uint16_t>({0, 1, 2, 3});
  const std::string path = WriteFile("part-0-00000.npy", ids);
  for (const char* type : {"", ":uint16"}) {
    const absl::Status status = Dataset::Open("d", path + type).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rename it and give it as FILE.bin:TYPE"));
  }
  auto renamed = Dataset::Open("d", WriteFile("part-0-00000.bin", ids) + ":uint16");
  ASSERT_TRUE(renamed.ok()) << renamed.status();
  EXPECT_THAT(Sequence(**renamed, 0, 4), ElementsAre(0, 1, 2, 3));
}

TEST(DatasetTest, NumpysFilesAreReadWhateverTheyAreCalled) {
  const std::string path = WriteFile("array.bin", Npy(Header("<u2", "(2,)"), Bytes<uint16_t>({7, 8})));
  auto dataset = Dataset::Open("d", path);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(Sequence(**dataset, 0, 2), ElementsAre(7, 8));
  EXPECT_THAT(std::string(Dataset::Open("d", path + ":uint16").status().message()), HasSubstr("leave out ':uint16'"));
}

// Returns a file as llm.c writes it: 256 int32, then the ids.
std::string LlmcFile(int32_t magic, int32_t version, int32_t tokens, const std::string& ids) {
  std::vector<int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = tokens;
  return Bytes(header) + ids;
}

TEST(DatasetTest, LlmcsHeaderIsNotReadAsTokens) {
  auto gpt2 = Dataset::Open("d", WriteFile("g.bin", LlmcFile(20240520, 1, 3, Bytes<uint16_t>({5, 6, 7}))) + ":uint16");
  ASSERT_TRUE(gpt2.ok()) << gpt2.status();
  EXPECT_EQ((*gpt2)->tokens(), 3);
  EXPECT_THAT(Sequence(**gpt2, 0, 3), ElementsAre(5, 6, 7));
  auto llama =
      Dataset::Open("d", WriteFile("l.bin", LlmcFile(20240801, 7, 2, Bytes<uint32_t>({5, 100000}))) + ":uint32");
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_THAT(Sequence(**llama, 0, 2, /*vocabulary_size=*/128256), ElementsAre(5, 100000));
  for (const std::string& source :
       {WriteFile("t.bin", LlmcFile(20240520, 1, 3, Bytes<uint16_t>({5, 6, 7}))) + ":uint32",
        WriteFile("v.bin", LlmcFile(20240520, 2, 3, Bytes<uint16_t>({5, 6, 7}))) + ":uint16",
        WriteFile("n.bin", LlmcFile(20240520, 1, 4, Bytes<uint16_t>({5, 6, 7}))) + ":uint16"}) {
    const absl::Status status = Dataset::Open("d", source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << source;
    EXPECT_THAT(std::string(status.message()), HasSubstr("llm.c's header"));
  }
}

TEST(DatasetTest, IdsOfTwiceTheDeclaredWidthAreNotReadAsIdsAndZeros) {
  std::vector<uint32_t> ids(600);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
  const std::string path = WriteFile("wide.bin", Bytes(ids));
  EXPECT_THAT(std::string(Dataset::Open("d", path + ":uint16").status().message()),
              HasSubstr("every second uint16 is 0, as if the ids had 32 bits"));
  EXPECT_TRUE(Dataset::Open("d", path + ":uint32").ok());
  EXPECT_TRUE(Dataset::Open("d", WriteFile("zeros.bin", std::string(4096, '\0')) + ":uint16").ok());
}

TEST(DatasetTest, FilesOfOtherFormatsAreNotReadAsTokens) {
  for (const char* start : {"PK\x03\x04", "PAR1", "ARROW1", "MMIDIDX", "LITPKDS"}) {
    const std::string path = WriteFile("other.bin", absl::StrCat(start, std::string(32 - strlen(start), 'x')));
    const absl::Status status = Dataset::Open("d", path + ":uint16").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << start;
    EXPECT_THAT(std::string(status.message()), HasSubstr("other.bin: is ")) << start;
  }
}

TEST(DatasetTest, FilesOfAnotherFormAreRefusedWithTheReason) {
  const std::string two = Bytes<uint16_t>({1, 2});
  const struct {
    std::string file, reason;
  } kCases[] = {
      {"no npy at all, but long enough", "not a .npy file"},
      {Npy(Header("<f4", "(1,)"), two), "type '<f4' is not uint8"},
      {Npy(Header(">u2", "(2,)"), two), "type '>u2' is not uint8"},
      {Npy(Header("<u2", "(3,)"), two), "its shape says 3 tokens of 2 bytes"},
      {Npy(Header("<u2", "(1,)"), two), "its shape says 1 tokens of 2 bytes"},
      {Npy(Header("<u2", "()"), two), "0 dimensions"},
      {Npy(Header("<u2", "(1, 1, 2)"), two), "3 dimensions"},
      {Npy(Header("<u2", "(2, 1)", "True"), two), "in Fortran order"},
      {Npy(Header("<u2", "(4611686018427387904, 8)"), two), "more tokens than any file holds"},
      {Npy(Header("<u2", "(0,)"), ""), "holds no tokens"},
      {Npy("{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1,), }", two), "structured types"},
      {Npy("{'descr': '<u2', 'shape': (2,), }", two), "is missing"},
      {Npy("{'descr': '<u2', 'descr': '<u2', }", two), "repeated key 'descr'"},
      {std::string("\x93NUMPY\x09\x00\x01\x00{", 11), "version 9"},
      {std::string("\x93NUMPY\x01\x00\xff\x00{", 11), "the file ends inside it"},
      {std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{", 13), "more than 10000"},
  };
  for (const auto& c : kCases) {
    auto dataset = Dataset::Open("d", WriteFile("bad.npy", c.file));
    EXPECT_EQ(dataset.status().code(), absl::StatusCode::kFailedPrecondition) << c.reason;
    EXPECT_THAT(std::string(dataset.status().message()), HasSubstr(c.reason));
    EXPECT_THAT(std::string(dataset.status().message()), HasSubstr("bad.npy"));
  }
  EXPECT_THAT(std::string(Dataset::Open("d", WriteFile("odd.bin", "abc") + ":uint16").status().message()),
              HasSubstr("3 bytes are not a multiple of 2"));
}

TEST(DatasetTest, TheTypeIsDeclaredForFlatFilesAndForThemAlone) {
  EXPECT_EQ(Dataset::Open("d", WriteFile("u.bin", "ab")).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Dataset::Open("d", WriteFile("u.npy", Npy(Header("|u1", "(1,)"), "a")) + ":uint8").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Dataset::Open("d", ::testing::TempDir() + "/absent.npy").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Dataset::Open("d", ::testing::TempDir() + "/:uint16").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Opens a dataset of 1000 tokens and applies `change` to its file. Returns the status of reading a sequence then.
absl::Status ReadAfter(const std::function<void(const std::string& path)>& change) {
  const std::string path = WriteFile("changing.bin", Bytes<uint16_t>(std::vector<uint16_t>(1000, 7)));
  auto dataset = Dataset::Open("corpus", path + ":uint16");
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  std::vector<uint32_t> ids(10);
  EXPECT_TRUE((*dataset)->ReadSequence(99, kVocabularySize, absl::MakeSpan(ids)).ok());
  absl::SleepFor(absl::Milliseconds(20));  // the kernel's clock for files ticks every 4 ms
  change(path);
  return (*dataset)->ReadSequence(99, kVocabularySize, absl::MakeSpan(ids));
}

TEST(DatasetTest, AFileThatIsTruncatedOrWrittenToIsDataLossThatNamesIt) {
  const std::function<void(const std::string&)> kChanges[] = {
      [](const std::string& path) { ASSERT_EQ(truncate(path.c_str(), 100), 0); },
      [](const std::string& path) { ASSERT_EQ(truncate(path.c_str(), 0), 0); },
      [](const std::string& path) { std::ofstream(path, std::ios::binary | std::ios::app) << "more"; },
      [](const std::string& path) { std::fstream(path, std::ios::binary | std::ios::in | std::ios::out) << "ab"; },
  };
  for (const auto& change : kChanges) {
    const absl::Status status = ReadAfter(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("changing.bin was changed"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("dataset 'corpus'"));
  }
}

TEST(DatasetTest, AFileThatIsReplacedOrRemovedGoesOnGivingWhatItHeld) {
  EXPECT_TRUE(ReadAfter([](const std::string& path) {
                const std::string other = WriteFile("other.bin", "xy");
                ASSERT_EQ(rename(other.c_str(), path.c_str()), 0);
              }).ok());
  EXPECT_TRUE(ReadAfter([](const std::string& path) { ASSERT_EQ(unlink(path.c_str()), 0); }).ok());
}

TEST(DatasetTest, AnIdBeyondTheVocabularyIsDataLossWhenItIsReadHoweverItCameThere) {
  const std::string path = WriteFile("ids.bin", Bytes<int64_t>({1, 2, 300, -1 + 5}));
  auto dataset = Dataset::Open("corpus", path + ":int64");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  std::vector<uint32_t> ids(2);
  EXPECT_TRUE((*dataset)->ReadSequence(0, 262, absl::MakeSpan(ids)).ok());
  const absl::Status status = (*dataset)->ReadSequence(1, 262, absl::MakeSpan(ids));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 2 is 300 now, not an id below 262"));
  EXPECT_TRUE((*dataset)->ReadSequence(1, 301, absl::MakeSpan(ids)).ok());
}

TEST(DatasetTest, PipesAndDevicesAreRefusedAtOnce) {
  const std::string pipe = ::testing::TempDir() + "/dataset_pipe";
  unlink(pipe.c_str());
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/dev/zero"), std::string("/dev/null")}) {
    const absl::Status status = Dataset::Open("d", path + ":uint16").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not a regular file"));
  }
}

TEST(DatasetTest, NoMutationOfAHeaderCrashesTheReader) {
  const std::string whole = Npy(Header("<u2", "(2, 3)"), Bytes<uint16_t>({1, 2, 3, 4, 5, 6}));
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string file = whole.substr(0, random() % (whole.size() + 1));
    for (int flips = random() % 4; flips > 0 && !file.empty(); --flips) {
      file[random() % std::min<size_t>(file.size(), 90)] = static_cast<char>(random());
    }
    auto header = ParseNpyHeader({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    if (header.ok()) {
      EXPECT_LE(header->data_offset, static_cast<int64_t>(file.size()));
    }
  }
}

}  // namespace
}  // namespace hookline
