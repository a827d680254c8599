#include "server/model/checkpoint/unpickler.h"

#include <chrono>

#include "gmock/gmock.h"

namespace hookline {
namespace {

std::string Refusal(const std::string& pickle) {
  const auto tensors = UnpickleStateDict({reinterpret_cast<const uint8_t*>(pickle.data()), pickle.size()});
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kFailedPrecondition);
  return std::string(tensors.status().message());
}

std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

TEST(UnpicklerTest, ReadsAnEmptyStateDict) {
  const std::string pickle = "\x80\x02}.";
  EXPECT_TRUE(UnpickleStateDict({reinterpret_cast<const uint8_t*>(pickle.data()), pickle.size()}).ok());
}

TEST(UnpicklerTest, DeepNestingNeitherOverflowsTheStackNorTheMemory) {
  Refusal("\x80\x02" + Repeat("]", 1'000'000) + ".");
  Refusal("\x80\x02)" + Repeat("\x85", 1'000'000) + ".");
  Refusal("\x80\x02" + Repeat("(", 3'000'000) + ".");
}

TEST(UnpicklerTest, ObjectsThatHoldThemselvesAreNoTrouble) {
  Refusal(
      "\x80\x02]q\x01h\x01"
      "a.");
  Refusal(std::string("\x80\x02}q\x01X\x01\x00\x00\x00", 11) + "ah\x01s.");
}

TEST(UnpicklerTest, SizesThatTheFileDoesNotHaveAreRefusedBeforeAnythingIsAllocated) {
  Refusal(std::string("\x80\x02X\xff\xff\xff\x7f", 7));
  Refusal(std::string("\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff", 11));
  Refusal("\x80\x02\x8a\xff");
}

TEST(UnpicklerTest, MissingPartsAreRefused) {
  for (const std::string pickle : {"", "\x80", "\x80\x02", "\x80\x02.", "\x80\x02R.", "\x80\x02t.", "\x80\x02q",
                                   "\x80\x02h\x05.", "\x80\x02Q.", "\x80\x02s.",
                                   "\x80\x02"
                                   "e.",
                                   "\x80\x02"
                                   "b.",
                                   "\x80\x02\x93.",
                                   "\x80\x02"
                                   "cab",
                                   "\x80\x09."}) {
    Refusal(pickle);
  }
}

TEST(UnpicklerTest, SomethingElseThanAStateDictIsRefused) {
  EXPECT_THAT(Refusal("\x80\x02K\x05."), ::testing::HasSubstr("an integer, not a state dict"));
  EXPECT_THAT(Refusal(std::string("\x80\x02}X\x01\x00\x00\x00wK\x05s.", 13)),
              ::testing::HasSubstr("an integer under 'w'"));
}

}  // namespace
}  // namespace hookline
