#include "server/base/input_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class InputFileTest : public ::testing::Test {
 protected:
  InputFileTest() : path_(absl::StrCat(::testing::TempDir(), "input_file_test.", getpid())) {}
  ~InputFileTest() override { std::filesystem::remove(path_); }

  void Write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  const std::string path_;
};

TEST_F(InputFileTest, ReadsWhatIsAskedFor) {
  Write("0123456789");
  const auto file = InputFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->size(), 10);
  std::array<uint8_t, 4> bytes;
  ASSERT_TRUE((*file)->ReadAt(6, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "6789");
  EXPECT_TRUE((*file)->CheckUnchanged().ok());
}

TEST_F(InputFileTest, AFileThatWasCutShortIsAnErrorOfItsReaderAndNoSignal) {
  Write(std::string(100000, 'x'));
  const auto file = InputFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(truncate(path_.c_str(), 10), 0);
  std::array<uint8_t, 100> bytes;
  const absl::Status status = (*file)->ReadAt(50000, absl::MakeSpan(bytes));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(path_), HasSubstr("50000"), HasSubstr("100000")));
  EXPECT_THAT((*file)->CheckUnchanged().message(), HasSubstr("went from 100000 to 10 bytes"));
}

TEST_F(InputFileTest, APipeIsRefusedAtOnce) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_THAT(InputFile::Open(path_).status().message(), AllOf(HasSubstr(path_), HasSubstr("not a regular file")));
}

TEST_F(InputFileTest, AWholeFileHasALimit) {
  Write("0123456789");
  EXPECT_EQ(ReadWholeFile(path_, 10).value_or(""), "0123456789");
  EXPECT_THAT(ReadWholeFile(path_, 9).status().message(), AllOf(HasSubstr("10 bytes"), HasSubstr("at most 9")));
  EXPECT_EQ(ReadWholeFile(path_ + ".none", 9).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace hookline
