#include "server/formats/unpickler.h"

#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

constexpr int kRounds = 20000;

TEST(UnpicklerTest, EverySingleOpcodeOnAnEmptyStackIsAnError) {
  for (int opcode = 0; opcode < 256; ++opcode) {
    for (const std::string& rest : {std::string(), std::string(16, '\0'), std::string(16, '\xff')}) {
      const std::string pickle = std::string(1, static_cast<char>(opcode)) + rest;
      const auto* bytes = reinterpret_cast<const uint8_t*>(pickle.data());
      EXPECT_FALSE(UnpickleStateDict({bytes, pickle.size()}).ok()) << opcode;
    }
  }
}

TEST(UnpicklerTest, EveryCutOfAPickleIsAnError) {
  const std::string pickle = Pickle::StateDict("w", {"FloatStorage", "0", 4, 0, {2, 2}, {2, 1}});
  for (size_t length = 0; length < pickle.size(); ++length) {
    // A copy of the beginning lets the address sanitizer see a read past the end.
    const std::vector<uint8_t> cut(pickle.begin(), pickle.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_FALSE(UnpickleStateDict(cut).ok()) << length;
  }
}

TEST(UnpicklerTest, RandomOpcodesAreAnError) {
  const std::string opcodes = "N(}])tue.sabRQc0K\x85\x86\x87\x88\x89\x8a\x93\x94hqX\x8c";
  std::mt19937 random(3);
  for (int round = 0; round < kRounds; ++round) {
    std::string pickle = Pickle().Rebuild({"FloatStorage", "0", 4, 0, {2, 2}, {2, 1}}).Stop();
    pickle.pop_back();
    for (int i = 0; i < 30; ++i) {
      pickle += opcodes[std::uniform_int_distribution<size_t>(0, opcodes.size() - 1)(random)];
      if (i % 5 == 0) pickle += static_cast<char>(std::uniform_int_distribution<int>(0, 4)(random));
    }
    const std::vector<uint8_t> exact(pickle.begin(), pickle.end());
    const auto tensors = UnpickleStateDict(exact);
    if (!tensors.ok()) {
      EXPECT_EQ(tensors.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

}  // namespace
}  // namespace hookline
