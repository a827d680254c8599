#include "server/model/checkpoint/torch_checkpoint.h"

#include <zlib.h>

#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "tests/checkpoint/files.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

std::string Fixture(const std::string& name) {
  return std::string(HOOKLINE_FIXTURES) + "/nanochat/" + name + "/model_000123.pt";
}

// An archive as torch.save writes it, from parts that a test may choose.
struct Entry {
  std::string name;
  std::string contents;
};

std::string Fixed(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

std::string Zip(const std::vector<Entry>& entries, uint16_t method = 0, uint16_t flags = 0) {
  std::string file, directory;
  for (const Entry& entry : entries) {
    const uint32_t crc = static_cast<uint32_t>(
        crc32(0, reinterpret_cast<const Bytef*>(entry.contents.data()), static_cast<uInt>(entry.contents.size())));
    const std::string common = Fixed(flags, 2) + Fixed(method, 2) + Fixed(0, 4) + Fixed(crc, 4) +
                               Fixed(entry.contents.size(), 4) + Fixed(entry.contents.size(), 4) +
                               Fixed(entry.name.size(), 2) + Fixed(0, 2);
    directory += Fixed(0x02014b50, 4) + Fixed(20, 2) + Fixed(20, 2) + common + Fixed(0, 2) + Fixed(0, 2) + Fixed(0, 2) +
                 Fixed(0, 4) + Fixed(file.size(), 4) + entry.name;
    file += Fixed(0x04034b50, 4) + Fixed(20, 2) + common + entry.name + entry.contents;
  }
  return file + directory + Fixed(0x06054b50, 4) + Fixed(0, 4) + Fixed(entries.size(), 2) + Fixed(entries.size(), 2) +
         Fixed(directory.size(), 4) + Fixed(file.size(), 4) + Fixed(0, 2);
}

std::string Text(const std::string& text) { return "X" + Fixed(text.size(), 4) + text; }
std::string Number(int64_t value) { return std::string("\x8a\x08") + Fixed(static_cast<uint64_t>(value), 8); }
std::string Tuple(const std::vector<int64_t>& numbers) {
  std::string out = "(";
  for (int64_t number : numbers) out += Number(number);
  return out + "t";
}

// The pickle of {"w": tensor over storage "0"}.
std::string TensorPickle(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t offset = 0,
                         int64_t storage_values = 6, const std::string& type = "FloatStorage") {
  return "\x80\x02}" + Text("w") + "ctorch._utils\n_rebuild_tensor_v2\n((" + Text("storage") + "ctorch\n" + type +
         "\n" + Text("0") + Text("cpu") + Number(storage_values) + "tQ" + Number(offset) + Tuple(sizes) +
         Tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)RtRs.";
}

std::string Checkpoint(const std::string& pickle, const std::string& storage = std::string(24, 'x')) {
  return Zip({{"m/data.pkl", pickle}, {"m/byteorder", "little"}, {"m/data/0", storage}});
}

class TorchCheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<StateDict> Read(const std::string& contents) {
    return ReadTorchCheckpoint(folder_.Write("model.pt", contents));
  }
  // Expects a refusal that names the file, and returns what it says.
  std::string Refusal(const std::string& contents) {
    const auto read = Read(contents);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition) << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("model.pt"));
    return std::string(read.status().message());
  }

  TemporaryFolder folder_;
};

TEST_F(TorchCheckpointTest, ReadsTensorsAsTheyAreStored) {
  const auto weights = ReadTorchCheckpoint(Fixture("I-mha"));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->tensors.size(), 4u + 1 + 4 * 6 + 2 + 1 + 1 + 2);
  const at::Tensor& table = weights->tensors.at("transformer.wte.weight");
  EXPECT_EQ(table.scalar_type(), at::kBFloat16);
  EXPECT_EQ(table.sizes(), (at::IntArrayRef{320, 48}));
  EXPECT_EQ(weights->tensors.at("smear_lambda").scalar_type(), at::kFloat);
}

TEST_F(TorchCheckpointTest, TakesTheCompilersPrefixOff) {
  const auto weights = ReadTorchCheckpoint(Fixture("Ap-mha"));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(ReadFile(Fixture("Ap-mha")), HasSubstr("_orig_mod."));
  for (const auto& [name, tensor] : weights->tensors) EXPECT_FALSE(absl::StartsWith(name, "_orig_mod.")) << name;
}

TEST_F(TorchCheckpointTest, TheTestsOwnArchivesAreReadable) {
  std::string storage;
  for (float value : {1.f, 2.f, 3.f, 4.f, 5.f, 6.f}) {
    storage.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  const auto weights = Read(Checkpoint(TensorPickle({2, 3}, {3, 1}), storage));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->tensors.at("w").sum().item<float>(), 21);
  const auto transposed = Read(Checkpoint(TensorPickle({3}, {2}, 1), storage));
  ASSERT_TRUE(transposed.ok()) << transposed.status();
  EXPECT_EQ(transposed->tensors.at("w").sum().item<float>(), 12);
}

TEST_F(TorchCheckpointTest, TensorsOutsideTheirStorageAreRefusedWhateverTheNumbers) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const std::string& pickle :
       {TensorPickle({7}, {1}), TensorPickle({2, 3}, {4, 1}), TensorPickle({1}, {1}, 6), TensorPickle({1}, {1}, -1),
        TensorPickle({-1}, {1}), TensorPickle({2}, {-1}, 3), TensorPickle({huge}, {1}),
        TensorPickle({huge, huge}, {0, 0}), TensorPickle({2, 2}, {huge, huge}), TensorPickle({int64_t{1} << 40}, {0}),
        TensorPickle({0}, {1}), TensorPickle({2, 2}, {1}),
        TensorPickle({1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1})}) {
    Refusal(Checkpoint(pickle));
  }
  EXPECT_THAT(Refusal(Checkpoint(TensorPickle({7}, {1}))), HasSubstr("'w'"));
}

TEST_F(TorchCheckpointTest, StoragesMustBeThereAndAsLongAsThePickleSays) {
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", TensorPickle({2, 3}, {3, 1})}})), HasSubstr("storage '0'"));
  EXPECT_THAT(Refusal(Checkpoint(TensorPickle({1}, {1}, 0, 5))), HasSubstr("storage of 5 values"));
  EXPECT_THAT(Refusal(Checkpoint(TensorPickle({1}, {1}, 0, 6), std::string(23, 'x'))), HasSubstr("23 bytes"));
  Refusal(Checkpoint(TensorPickle({1}, {1}, 0, int64_t{1} << 62)));
  Refusal(Checkpoint(TensorPickle({1}, {1}, 0, -6)));
}

TEST_F(TorchCheckpointTest, CodeInAPickleIsRefusedByName) {
  EXPECT_THAT(Refusal(Checkpoint("\x80\x02"
                                 "cos\nsystem\n(" +
                                 Text("touch /tmp/owned") + "tR.")),
              HasSubstr("'os.system'"));
  EXPECT_THAT(Refusal(Checkpoint("\x80\x04" + std::string("\x8c\x02os\x8c\x06system\x93."))), HasSubstr("'os.system'"));
  EXPECT_THAT(Refusal(Checkpoint("\x80\x02"
                                 "cbuiltins\neval\n.")),
              HasSubstr("'builtins.eval'"));
  EXPECT_THAT(Refusal(Checkpoint("\x80\x02"
                                 "ctorch\nload\n.")),
              HasSubstr("'torch.load'"));
  // INST and OBJ make objects, too.
  EXPECT_THAT(Refusal(Checkpoint("\x80\x02(ios\nsystem\n.")), HasSubstr("opcode 0x69"));
  EXPECT_THAT(Refusal(Checkpoint("\x80\x02(o.")), HasSubstr("opcode 0x6f"));
}

TEST_F(TorchCheckpointTest, ArchivesOfAnotherKindAreRefused) {
  const std::string pickle = TensorPickle({1}, {1});
  EXPECT_THAT(Refusal("hello"), HasSubstr("not a zip archive"));
  EXPECT_THAT(Refusal(Zip({{"a", "b"}})), HasSubstr("data.pkl"));
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", pickle}}, /*method=*/8)), HasSubstr("compressed"));
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", pickle}}, 0, /*flags=*/1)), HasSubstr("encrypted"));
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", pickle}, {"n/data.pkl", pickle}})), HasSubstr("two pickles"));
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", pickle}, {"m/data.pkl", pickle}})), HasSubstr("twice"));
  EXPECT_THAT(Refusal(Zip({{"m/data.pkl", pickle}, {"m/byteorder", "big"}})), HasSubstr("big-endian"));
}

TEST_F(TorchCheckpointTest, OverlappingEntriesAreRefused) {
  std::string file = Checkpoint(TensorPickle({1}, {1}));
  // The last central record's offset, so that two entries share one place.
  const size_t record = file.rfind("PK\x01\x02");
  const size_t before = file.rfind("PK\x01\x02", record - 1);
  for (size_t i : {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 42, 43, 44, 45}) file[record + i] = file[before + i];
  Refusal(file);
}

TEST_F(TorchCheckpointTest, AFileCutAnywhereIsRefused) {
  const std::string whole = Checkpoint(TensorPickle({2, 3}, {3, 1}));
  ASSERT_TRUE(Read(whole).ok());
  for (size_t length = 1; length < whole.size(); ++length) Refusal(whole.substr(0, length));
}

TEST_F(TorchCheckpointTest, NoChangeOfBytesDoesHarm) {
  // Of a small archive any two bytes; what is still accepted must be readable to its end.
  const std::string whole = Checkpoint(TensorPickle({2, 3}, {3, 1}));
  std::mt19937 random(1);
  for (int round = 0; round < 1500; ++round) {
    std::string file = whole;
    for (int i = 0; i < 2; ++i) file[random() % file.size()] = static_cast<char>(random());
    const auto weights = Read(file);
    if (!weights.ok()) continue;
    for (const auto& [name, tensor] : weights->tensors) (void)tensor.to(at::kDouble).sum().item<double>();
  }
}

TEST_F(TorchCheckpointTest, NoChangeOfARealPickleDoesHarm) {
  // The checksum would stop these at once, so the pickle is changed inside an archive that is made anew.
  const std::string real = ReadFile(Fixture("I-gqa"));
  const size_t begin = real.find(
      "\x80\x02"
      "ccollections\nOrderedDict\n");
  ASSERT_NE(begin, std::string::npos);
  const std::string pickle = real.substr(begin, real.find("PK", begin) - begin);
  std::mt19937 random(2);
  for (int round = 0; round < 1500; ++round) {
    std::string changed = pickle;
    for (int i = 0; i < 3; ++i) changed[random() % changed.size()] = static_cast<char>(random());
    (void)Read(Checkpoint(changed));
  }
}

TEST_F(TorchCheckpointTest, ARealFileWithOneBitFlippedIsRefused) {
  const std::string real = ReadFile(Fixture("F-gqa"));
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 60; ++round) {
    std::string file = real;
    file[random() % file.size()] ^= static_cast<char>(1 << (random() % 8));
    refused += !Read(file).ok();
  }
  // Padding between entries, times and version numbers say nothing.
  EXPECT_GE(refused, 55);
}

}  // namespace
}  // namespace hookline
