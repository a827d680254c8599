// Gives a test a folder of its own.
#ifndef HOOKLINE_TESTS_MODEL_SCRATCH_FOLDER_H_
#define HOOKLINE_TESTS_MODEL_SCRATCH_FOLDER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"

namespace hookline {

// A fixture whose folder `root_` is empty at first and removed at the end.
class ScratchFolderTest : public ::testing::Test {
 protected:
  ScratchFolderTest() { std::filesystem::create_directories(root_); }
  ~ScratchFolderTest() override { std::filesystem::remove_all(root_); }

  const std::filesystem::path root_ =
      std::filesystem::temp_directory_path() /
      absl::StrCat("hookline-", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-", getpid());
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_MODEL_SCRATCH_FOLDER_H_
