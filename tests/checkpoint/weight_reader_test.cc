#include "server/model/load/weight_reader.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/torch_checkpoint.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The values take more than one piece of a read, are not a multiple of a piece, and are enough for huge pages.
constexpr int64_t kValues = 2'500'001;

// Returns bfloat16 values, none of which is NaN.
std::string RandomValues() {
  std::mt19937 random(7);
  std::string bytes;
  bytes.reserve(2 * kValues);
  for (int64_t i = 0; i < kValues; ++i) {
    bytes += static_cast<char>(random());
    bytes += static_cast<char>(random() % 2 == 0 ? 0x3e : 0xbf);
  }
  return bytes;
}

std::string Safetensors(const std::string& name, const std::string& shape, const std::string& bytes) {
  const std::string header =
      absl::StrCat("{\"", name, R"(":{"dtype":"BF16","shape":)", shape, R"(,"data_offsets":[0,)", bytes.size(), "]}}");
  return Little(header.size(), 8) + header + bytes;
}

std::string Large(const std::string& bytes) { return Safetensors("w", absl::StrCat("[", kValues, "]"), bytes); }

at::Tensor BFloat16(const std::string& bytes) {
  return at::from_blob(const_cast<char*>(bytes.data()), {static_cast<int64_t>(bytes.size()) / 2}, at::kBFloat16);
}

StateDict Open(const ScratchFile& file) {
  absl::StatusOr<StateDict> weights = ReadSafetensors(file.path());
  EXPECT_TRUE(weights.ok()) << weights.status();
  return *std::move(weights);
}

std::string FingerprintOf(const std::string& bytes, const std::string& configuration) {
  const ScratchFile file;
  file.Write(bytes);
  const StateDict weights = Open(file);
  const absl::StatusOr<std::string> fingerprint = WeightReader(weights).Finish(configuration);
  EXPECT_TRUE(fingerprint.ok()) << fingerprint.status();
  return *fingerprint;
}

TEST(WeightReaderTest, ReadsAndConvertsEveryValue) {
  const std::string bytes = RandomValues();
  const ScratchFile file;
  file.Write(Large(bytes));
  const StateDict weights = Open(file);
  WeightReader reader(weights);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kHalf, at::kDouble}) {
    const auto values = reader.Read("w", dtype);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(values->scalar_type(), dtype);
    EXPECT_TRUE(at::equal(*values, BFloat16(bytes).to(dtype))) << dtype;
  }
}

TEST(WeightReaderTest, WhatIsDoneToTheFileLaterChangesNoValue) {
  const std::string bytes = RandomValues();
  const ScratchFile file;
  file.Write(Large(bytes));
  const StateDict weights = Open(file);
  WeightReader reader(weights);
  const auto values = reader.Read("w", at::kBFloat16);
  ASSERT_TRUE(values.ok()) << values.status();
  file.Write(Large(std::string(bytes.size(), 'x')));
  EXPECT_TRUE(at::equal(*values, BFloat16(bytes)));
  ASSERT_EQ(truncate(file.path().c_str(), 100), 0);
  EXPECT_TRUE(at::equal(*values, BFloat16(bytes)));
}

TEST(WeightReaderTest, AFileThatIsCutShortMeanwhileIsRefusedByName) {
  const ScratchFile file;
  file.Write(Large(RandomValues()));
  const StateDict weights = Open(file);
  WeightReader reader(weights);
  ASSERT_EQ(truncate(file.path().c_str(), kValues), 0);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const absl::Status status = reader.Read("w", dtype).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), AllOf(HasSubstr(file.path()), HasSubstr("'w'"), HasSubstr("cut it short")));
  }
}

TEST(WeightReaderTest, AFileThatIsWrittenToReplacedOrRemovedMeanwhileIsRefusedByName) {
  const std::string bytes = RandomValues();
  const ScratchFile file, other;
  const auto refusal = [&](const std::function<void()>& change) {
    file.Write(Large(bytes));
    const StateDict weights = Open(file);
    WeightReader reader(weights);
    EXPECT_TRUE(reader.Read("w", at::kFloat).ok());
    change();
    const absl::Status status = reader.Finish("").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr(file.path()));
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([&] { file.Write(Large(bytes)); }), HasSubstr("was written to"));
  EXPECT_THAT(refusal([&] { file.Write("longer" + Large(bytes)); }), HasSubstr("bytes while it was read"));
  EXPECT_THAT(refusal([&] {
                other.Write(Large(bytes));
                ASSERT_EQ(std::rename(other.path().c_str(), file.path().c_str()), 0);
              }),
              HasSubstr("was replaced or removed"));
}

TEST(WeightReaderTest, ADamagedStorageIsRefusedByItsChecksum) {
  std::string storage(3 << 20, 'a');
  const std::string whole =
      TorchFile(Pickle::StateDict("w", {"FloatStorage", "0", 3 << 18, 0, {3 << 18}, {1}}), {storage});
  // Reading a part of a storage checks all of the storage.
  const std::string part = TorchFile(Pickle::StateDict("w", {"FloatStorage", "0", 3 << 18, 5, {7}, {3}}), {storage});
  for (std::string bytes : {whole, part}) {
    for (const bool damaged : {false, true}) {
      if (damaged) bytes[bytes.find(std::string(1 << 20, 'a')) + (5 << 19)] = 'b';
      const ScratchFile file;
      file.Write(bytes);
      const auto weights = ReadTorchCheckpoint(file.path());
      ASSERT_TRUE(weights.ok()) << weights.status();
      const absl::Status status = WeightReader(*weights).Read("w", at::kFloat).status();
      EXPECT_EQ(status.ok(), !damaged) << status;
      if (damaged) {
        EXPECT_THAT(status.message(), AllOf(HasSubstr("'w'"), HasSubstr("checksum")));
      }
    }
  }
}

TEST(WeightReaderTest, TheFingerprintTellsNamesValuesShapesAndConfigurationsApart) {
  const std::string bytes(12, 'v');
  const std::string fingerprint = FingerprintOf(Safetensors("a", "[2,3]", bytes), "config");
  EXPECT_EQ(fingerprint.size(), 32u);
  EXPECT_EQ(FingerprintOf(Safetensors("a", "[2,3]", bytes), "config"), fingerprint);
  EXPECT_NE(FingerprintOf(Safetensors("a", "[2,3]", bytes), "config "), fingerprint);
  EXPECT_NE(FingerprintOf(Safetensors("a", "[3,2]", bytes), "config"), fingerprint);
  EXPECT_NE(FingerprintOf(Safetensors("b", "[2,3]", bytes), "config"), fingerprint);
  EXPECT_NE(FingerprintOf(Safetensors("a", "[2,3]", std::string(12, 'u')), "config"), fingerprint);
}

// Resume tokens and recordings of earlier versions hold fingerprints that were computed in this way.
TEST(WeightReaderTest, TheFingerprintIsTheHashOfNamesFormsAndHashesOfValues) {
  const std::string bytes = RandomValues();
  std::string text = Little(1, 8) + "w" + Little(8, 8) + "BFloat16" + Little(kValues, 8);
  const XXH128_hash_t values = XXH3_128bits(bytes.data(), bytes.size());
  text += Little(values.low64, 8) + Little(values.high64, 8) + Little(6, 8) + "config";
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  EXPECT_EQ(FingerprintOf(Large(bytes), "config"),
            absl::StrCat(absl::Hex(hash.high64, absl::kZeroPad16), absl::Hex(hash.low64, absl::kZeroPad16)));
}

TEST(WeightReaderTest, TheFingerprintIsOfTheValuesHoweverTheyLieInTheFile) {
  const auto fingerprint = [](const Pickle::Tensor& tensor, const std::string& storage) {
    const ScratchFile file;
    file.Write(TorchFile(Pickle::StateDict("w", tensor), {storage}));
    const auto weights = ReadTorchCheckpoint(file.path());
    EXPECT_TRUE(weights.ok()) << weights.status();
    WeightReader reader(*weights);
    // The first fingerprint hashes values that were not read, the second one values that were.
    const std::string unread = *reader.Finish("");
    EXPECT_TRUE(reader.Read("w", at::kDouble).ok());
    EXPECT_EQ(*reader.Finish(""), unread);
    return unread;
  };
  std::string transposed = FourFloats();
  std::swap_ranges(transposed.begin() + 4, transposed.begin() + 8, transposed.begin() + 8);
  EXPECT_EQ(fingerprint({"FloatStorage", "0", 4, 0, {2, 2}, {2, 1}}, FourFloats()),
            fingerprint({"FloatStorage", "0", 4, 0, {2, 2}, {1, 2}}, transposed));
}

}  // namespace
}  // namespace hookline
