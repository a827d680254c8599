// Tests pickles that hold something other than a state dict, or something besides one.
#include <string>

#include "gmock/gmock.h"
#include "server/model/load/torch_checkpoint.h"
#include "tests/checkpoint/values_of.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::StatusOr<StateDict> Load(const std::string& bytes) {
  const ScratchFile file;
  file.Write(bytes);
  auto weights = ReadTorchCheckpoint(file.path());
  if (!weights.ok()) {
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kFailedPrecondition) << weights.status();
    EXPECT_THAT(weights.status().message(), HasSubstr(file.path()));
  }
  return weights;
}

std::string Refusal(const std::string& pickle) {
  const auto weights = Load(TorchFile(pickle, {FourFloats()}));
  EXPECT_FALSE(weights.ok());
  return std::string(weights.status().message());
}

Pickle::Tensor Square() { return {"FloatStorage", "0", 4, 0, {2, 2}, {2, 1}}; }

std::string RefusalOf(const Pickle::Tensor& tensor) { return Refusal(Pickle::StateDict("w", tensor)); }

TEST(HostilePickleTest, TheSameFileWithoutHostilityIsRead) {
  const auto weights = Load(TorchFile(Pickle::StateDict("_orig_mod.w", Square()), {FourFloats()}));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "w"), at::arange(4, at::kFloat).view({2, 2})));
}

TEST(HostilePickleTest, NamesAreReadWithoutWhatWrappersPutBeforeThem) {
  for (const char* name : {"module.w", "module._orig_mod.w", "_orig_mod.module.w", "w"}) {
    const auto weights = Load(TorchFile(Pickle::StateDict(name, Square()), {FourFloats()}));
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->tensors.count("w"), 1U) << name;
  }
}

TEST(HostilePickleTest, FlagsThatChangeValuesAreRefused) {
  Pickle::Tensor tensor = Square();
  tensor.metadata = "}X" + std::string("\x03\0\0\0neg\x88s", 9);
  EXPECT_THAT(RefusalOf(tensor), HasSubstr("flags that change its values (conj, neg)"));
  for (const std::string& none : {std::string("}"), std::string("N")}) {
    tensor.metadata = none;
    EXPECT_TRUE(Load(TorchFile(Pickle::StateDict("w", tensor), {FourFloats()})).ok());
  }
}

TEST(HostilePickleTest, TransposedAndSharedStoragesAreReadAsTheirTensorsSay) {
  Pickle pickle;
  pickle.Global("collections", "OrderedDict").Raw(")R(");
  pickle.String("whole").Rebuild({"FloatStorage", "0", 4, 0, {2, 2}, {1, 2}});
  pickle.String("part").Rebuild({"FloatStorage", "0", 4, 1, {2}, {2}});
  const auto weights = Load(TorchFile(pickle.Raw("u").Stop(), {FourFloats()}));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "whole"), at::arange(4, at::kFloat).view({2, 2}).t()));
  EXPECT_TRUE(at::equal(ValuesOf(*weights, "part"), at::tensor({1.0f, 3.0f})));
}

TEST(HostilePickleTest, ACallOfAnyOtherFunctionIsRefusedByNameAndNotMade) {
  const std::string call = Pickle().Global("os", "system").String("touch /tmp/hookline-was-here").Raw("\x85R").Stop();
  EXPECT_THAT(Refusal(call), AllOf(HasSubstr("'os.system'"), HasSubstr("nothing is executed")));
  // STACK_GLOBAL takes the same names from the stack.
  EXPECT_THAT(Refusal(Pickle().String("builtins").String("eval").Raw("\x93").String("1").Raw("\x85R").Stop()),
              HasSubstr("'builtins.eval'"));
  EXPECT_THAT(Refusal(Pickle().Global("numpy.core.multiarray", "_reconstruct").Stop()), HasSubstr("_reconstruct"));
  EXPECT_THAT(Refusal(Pickle().Global("torch", "load").Stop()), HasSubstr("'torch.load'"));
}

TEST(HostilePickleTest, EveryForeignOpcodeIsRefusedByItsNumber) {
  // These are INST, OBJ, NEWOBJ_EX, EXT1, PERSID, BYTEARRAY8, NEXT_BUFFER, FROZENSET, LONG4, and a byte that is not
  // an opcode.
  for (const char opcode : std::string("io\x92\x82P\x96\x97\x91\x8b\xff")) {
    EXPECT_THAT(Refusal(Pickle().Raw(std::string(1, opcode)).Stop()), HasSubstr("has opcode 0x"));
  }
}

TEST(HostilePickleTest, WhatIsNotAStateDictIsRefused) {
  EXPECT_THAT(Refusal(Pickle().Int(3).Stop()), HasSubstr("holds an integer, not a state dict"));
  EXPECT_THAT(Refusal(Pickle().Raw("}").String("lr").Int(3).Raw("s").Stop()), HasSubstr("an integer under 'lr'"));
  EXPECT_THAT(Refusal(Pickle().Raw("}").Int(1).Rebuild(Square()).Raw("s").Stop()), HasSubstr("as a key"));
  EXPECT_THAT(Refusal(Pickle().Raw("}").String("w").Raw("}").Raw("s").Stop()),
              HasSubstr("a dict under 'w' instead of a tensor: if that is the state dict, save it alone"));
  Pickle twice;
  twice.Raw("}").String("w").Rebuild(Square()).Raw("s").String("w").Rebuild(Square()).Raw("s");
  EXPECT_THAT(Refusal(twice.Stop()), HasSubstr("two tensors 'w'"));
  Pickle prefixed;
  prefixed.Raw("}").String("w").Rebuild(Square()).Raw("s").String("_orig_mod.w").Rebuild(Square()).Raw("s");
  EXPECT_THAT(Refusal(prefixed.Stop()), HasSubstr("'w' appears twice"));
}

TEST(HostilePickleTest, AMissingStorageIsNamed) {
  Pickle::Tensor tensor = Square();
  tensor.key = "7";
  EXPECT_THAT(RefusalOf(tensor), AllOf(HasSubstr("tensor 'w'"), HasSubstr("storage '7'")));
  tensor.key = "../data.pkl";
  EXPECT_THAT(RefusalOf(tensor), HasSubstr("storage '../data.pkl'"));
  tensor.key = std::string(100000, '0');
  EXPECT_THAT(RefusalOf(tensor), HasSubstr("describes a storage"));
}

TEST(HostilePickleTest, AStorageOfAnotherSizeThanItsEntryIsRefused) {
  Pickle::Tensor tensor = Square();
  tensor.storage_values = 5;
  EXPECT_THAT(RefusalOf(tensor), AllOf(HasSubstr("5 values (FloatStorage)"), HasSubstr("16 bytes")));
  tensor = Square();
  tensor.type = "DoubleStorage";
  EXPECT_THAT(RefusalOf(tensor), HasSubstr("4 values (DoubleStorage)"));
  tensor.storage_values = -1;
  EXPECT_THAT(RefusalOf(tensor), HasSubstr("describes a storage"));
}

TEST(HostilePickleTest, ATensorOutsideItsStorageIsRefusedWhateverTheNumbers) {
  constexpr int64_t kHuge = INT64_MAX;
  const struct {
    int64_t offset;
    std::vector<int64_t> sizes, strides;
  } cases[] = {
      {1, {2, 2}, {2, 1}},
      {4, {1}, {1}},
      {-1, {1}, {1}},
      {0, {5}, {1}},
      {0, {2, 2}, {3, 1}},
      {0, {-2, 2}, {2, 1}},
      {0, {2, 2}, {-2, 1}},
      {kHuge, {2, 2}, {2, 1}},
      {0, {kHuge, kHuge}, {0, 0}},
      {0, {kHuge, 2}, {kHuge, kHuge}},
      {0, {2, 2}, {kHuge, kHuge}},
      {0, {1 << 30, 1 << 30, 16}, {0, 0, 0}},
      {0, {1000000000}, {0}},
      {INT64_MIN, {1}, {1}},
      {0, {2, 2}, {1}},
      {0, {INT64_MIN}, {INT64_MIN}},
      {0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}},
  };
  for (const auto& one : cases) {
    Pickle::Tensor tensor = Square();
    tensor.offset = one.offset;
    tensor.sizes = one.sizes;
    tensor.strides = one.strides;
    EXPECT_FALSE(Load(TorchFile(Pickle::StateDict("w", tensor), {FourFloats()})).ok())
        << one.offset << " " << ::testing::PrintToString(one.sizes) << ::testing::PrintToString(one.strides);
  }
}

TEST(HostilePickleTest, DeepNestingIsAnErrorAndNoStackOverflow) {
  // These nest tuples in tuples, marks in marks and lists in lists.
  std::string tuples = ")";
  for (int i = 0; i < 1000000; ++i) tuples += '\x85';
  EXPECT_THAT(Refusal(Pickle().Raw(tuples).Stop()), HasSubstr("holds a tuple"));
  EXPECT_THAT(Refusal(Pickle().Raw(std::string(1000000, '(')).Stop()), HasSubstr("not a state dict"));
  EXPECT_THAT(Refusal(Pickle().Raw(std::string(1000000, ']') + std::string(999999, 'a')).Stop()),
              HasSubstr("holds a list"));
  // This dict holds itself.
  EXPECT_THAT(
      Refusal(
          Pickle().Raw("}q").Raw(std::string(1, '\0')).String("w").Raw("h").Raw(std::string(1, '\0')).Raw("s").Stop()),
      HasSubstr("a dict under 'w' instead of a tensor: if that is the state dict, save it alone"));
}

TEST(HostilePickleTest, FewBytesCannotClaimMuchMemory) {
  // A short file claims a string of 4 GiB, then one of 16 EiB.
  EXPECT_THAT(Refusal(Pickle().Raw("X\xff\xff\xff\xff").Stop()), HasSubstr("cut short"));
  EXPECT_THAT(Refusal(Pickle().Raw("\x8d" + std::string(8, '\xff')).Stop()), HasSubstr("cut short"));
  EXPECT_THAT(Refusal(Pickle().Raw(std::string("\x8a\xff", 2) + std::string(300, '\xff')).Stop()),
              HasSubstr("more than 64 bits"));
  // One byte each makes an object, a place on the stack, or a place in the memo.
  EXPECT_THAT(Refusal(Pickle().Raw(std::string(2000000, 'N')).Stop()), HasSubstr("holds more than 1500000 objects"));
  std::string recalls = std::string("Nq\0", 3);
  for (int i = 0; i < 1600000; ++i) recalls += std::string("h\0", 2);
  EXPECT_THAT(Refusal(Pickle().Raw(recalls).Stop()), HasSubstr("stacks more than 1500000 objects"));
  EXPECT_THAT(Refusal(Pickle().Raw("N" + std::string(2000000, '\x94')).Stop()),
              HasSubstr("remembers more than 1500000 objects"));
  EXPECT_THAT(Refusal(Pickle().Raw(std::string(17 << 20, 'N')).Stop()), HasSubstr("at most 16777216 are read"));
}

TEST(HostilePickleTest, ALongNameIsQuotedInPart) {
  EXPECT_LT(Refusal(Pickle().Global(std::string(1 << 20, 'm'), "f").Stop()).size(), 1000u);
  Pickle::Tensor tensor = Square();
  tensor.key = "7";
  EXPECT_LT(Refusal(Pickle::StateDict(std::string(1 << 20, 'w'), tensor)).size(), 1000u);
}

TEST(HostilePickleTest, AnArchiveWithoutExactlyOnePickleIsRefused) {
  EXPECT_THAT(Load(ZipWriter().Add({"archive/version", "3\n"}).Write()).status().message(),
              HasSubstr("holds no data.pkl"));
  const std::string pickle = Pickle::StateDict("w", Square());
  EXPECT_THAT(Load(ZipWriter().Add({"a/data.pkl", pickle}).Add({"b/data.pkl", pickle}).Write()).status().message(),
              HasSubstr("two pickles"));
  ZipWriter big_endian;
  big_endian.Add({"a/data.pkl", pickle}).Add({"a/data/0", FourFloats()}).Add({"a/byteorder", "big"});
  EXPECT_THAT(Load(big_endian.Write()).status().message(), HasSubstr("big-endian"));
}

}  // namespace
}  // namespace hookline
