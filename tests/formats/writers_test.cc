// Tests that the readers read what the writers write.
#include <zlib.h>

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "server/formats/npy.h"
#include "server/formats/pickle_writer.h"
#include "server/formats/unpickler.h"
#include "server/formats/zip_archive.h"
#include "server/formats/zip_writer.h"
#include "tests/formats/archive_writer.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(NpyTest, TheHeaderOfAMatrixIsRead) {
  for (const int64_t rows : {int64_t{0}, int64_t{3}, int64_t{1} << 60}) {
    const std::string header = NpyMatrixHeader("<f2", rows, 768);
    EXPECT_EQ(header.size(), static_cast<size_t>(kNpyMatrixHeaderBytes));
    const auto read = ParseNpyHeader(Bytes(header));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->descr, "<f2");
    EXPECT_FALSE(read->fortran_order);
    EXPECT_THAT(read->shape, ElementsAre(rows, 768));
    EXPECT_EQ(read->data_offset, kNpyMatrixHeaderBytes);
  }
}

TEST(ZipWriterTest, EntriesAreWhereTheDirectorySays) {
  const std::string values = FourFloats();
  const auto crc = static_cast<uint32_t>(crc32_z(0, Bytes(values).data(), values.size()));
  const std::string header = ZipEntryHeader("archive/data/0", crc, values.size());
  EXPECT_EQ(header.size(), ZipEntryHeaderBytes(14));
  ZipTrailer trailer("archive/data/0", crc, values.size());
  trailer.Add("archive/version", "3\n");
  const ScratchFile scratch;
  scratch.Write(header + values + std::move(trailer).Finish());
  auto file = InputFile::Open(scratch.path());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto archive = ZipArchive::Open(*std::move(file));
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_EQ(archive->Read("archive/data/0", 100).value_or(""), values);
  EXPECT_EQ(archive->Read("archive/version", 100).value_or(""), "3\n");
}

TEST(PickleWriterTest, AMatrixIsATensorOfTheUnpickler) {
  for (const int64_t rows : {int64_t{2}, int64_t{70'000}, int64_t{1} << 40}) {
    const std::string pickle = PickleMatrix(Dtype::kBFloat16, rows, 300);
    // The unpickler reads dicts of tensors, so the tensor becomes {"t": the tensor}.
    const std::string dict =
        pickle.substr(0, 2) + "}X" + Little(1, 4) + "t" + pickle.substr(2, pickle.size() - 3) + "s.";
    const auto tensors = UnpickleStateDict(Bytes(dict));
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    ASSERT_EQ(tensors->size(), 1u);
    EXPECT_EQ(tensors->front().storage_type, "BFloat16Storage");
    EXPECT_EQ(tensors->front().storage_values, rows * 300);
    EXPECT_THAT(tensors->front().sizes, ElementsAre(rows, 300));
    EXPECT_THAT(tensors->front().strides, ElementsAre(300, 1));
  }
}

}  // namespace
}  // namespace hookline
