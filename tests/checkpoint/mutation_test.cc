// Damages small checkpoints at random: reading them must end in a status or in tensors that can be read.
#include <functional>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/torch_checkpoint.h"
#include "server/model/load/weight_reader.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

constexpr int kRounds = 2000;

// Changes, inserts, removes or repeats a few bytes.
std::string Damage(std::string bytes, std::mt19937& random) {
  const auto below = [&](size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random); };
  // These values tend to break the arithmetic of sizes and offsets.
  static const std::string kNumbers[] = {Little(0, 4),        Little(UINT64_MAX, 8), Little(INT64_MAX, 8),
                                         Little(1u << 31, 4), Little(UINT64_MAX, 2), Little(uint64_t{1} << 40, 8)};
  for (size_t changes = 1 + below(3); changes > 0 && bytes.size() > 16; --changes) {
    const size_t at = below(bytes.size() - 8);
    switch (below(5)) {
      case 0:
        bytes[at] = static_cast<char>(below(256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2: {
        const std::string& number = kNumbers[below(std::size(kNumbers))];
        bytes.replace(at, number.size(), number);
        break;
      }
      case 3:
        bytes.erase(at, 1 + below(8));
        break;
      default:
        bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(32)));
    }
  }
  return bytes;
}

// Reads every value that was loaded.
int64_t Touch(const absl::StatusOr<StateDict>& weights) {
  if (!weights.ok()) {
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition) << weights.status();
    return 0;
  }
  WeightReader reader(*weights);
  for (const auto& [name, tensor] : weights->tensors) {
    if (const auto values = reader.Read(name, at::kDouble); !values.ok()) {
      EXPECT_EQ(values.status().code(), absl::StatusCode::kFailedPrecondition) << values.status();
      return 0;
    }
  }
  return 1;
}

std::string TwoTensors() {
  Pickle pickle;
  pickle.Global("collections", "OrderedDict").Raw(")R(");
  pickle.String("one").Rebuild({"FloatStorage", "0", 4, 0, {2, 2}, {2, 1}});
  pickle.String("two").Rebuild({"BFloat16Storage", "1", 8, 2, {3}, {2}});
  return pickle.Raw("u").Stop();
}

TEST(MutationTest, ADamagedTorchFileIsAnErrorOrReadsInsideItself) {
  const std::string whole = TorchFile(TwoTensors(), {FourFloats(), FourFloats()});
  std::mt19937 random(1);
  const ScratchFile file;
  int64_t read = 0;
  for (int round = 0; round < kRounds; ++round) {
    file.Write(Damage(whole, random));
    read += Touch(ReadTorchCheckpoint(file.path()));
  }
  // Damage to padding goes unnoticed; most of the damage must be noticed.
  EXPECT_LT(read, kRounds / 2);
}

// Checksums keep most damaged pickles from the reader behind them, so here they are made right.
TEST(MutationTest, ADamagedPickleIsAnErrorOrReadsInsideItsStorages) {
  const std::string pickle = TwoTensors();
  std::mt19937 random(2);
  const ScratchFile file;
  int64_t read = 0;
  for (int round = 0; round < kRounds; ++round) {
    file.Write(TorchFile(Damage(pickle, random), {FourFloats(), FourFloats()}));
    read += Touch(ReadTorchCheckpoint(file.path()));
  }
  EXPECT_LT(read, kRounds / 2);
}

TEST(MutationTest, ADamagedFileFromBeforePyTorch16IsAnErrorOrReadsInsideItself) {
  const std::string whole = ReadFile(std::string(HOOKLINE_FIXTURES) + "/checkpoints/legacy.bin");
  std::mt19937 random(6);
  const ScratchFile file;
  for (int round = 0; round < kRounds; ++round) {
    file.Write(Damage(whole, random));
    Touch(ReadTorchCheckpoint(file.path()));
  }
}

TEST(MutationTest, ADamagedSafetensorsFileIsAnErrorOrReadsInsideItself) {
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]}})";
  const std::string whole = Little(header.size(), 8) + header + FourFloats();
  std::mt19937 random(4);
  const ScratchFile file;
  for (int round = 0; round < kRounds; ++round) {
    file.Write(Damage(whole, random));
    Touch(ReadSafetensors(file.path()));
  }
}

TEST(MutationTest, ADamagedCheckpointOfATrainerIsAnErrorOrReadsInsideItself) {
  const std::string whole = ReadFile(std::string(HOOKLINE_FIXTURES) + "/nanochat/G-gqa/model_000123.pt");
  ASSERT_GT(whole.size(), 100000u);
  std::mt19937 random(5);
  const ScratchFile file;
  for (int round = 0; round < 100; ++round) {
    file.Write(Damage(whole, random));
    Touch(ReadTorchCheckpoint(file.path()));
    file.Write(whole.substr(0, std::uniform_int_distribution<size_t>(0, whole.size() - 1)(random)));
    EXPECT_FALSE(ReadTorchCheckpoint(file.path()).ok());
  }
}

}  // namespace
}  // namespace hookline
