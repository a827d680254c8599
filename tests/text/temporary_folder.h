// A folder for a test's files, removed with the test.
#ifndef HOOKLINE_TESTS_TEXT_TEMPORARY_FOLDER_H_
#define HOOKLINE_TESTS_TEXT_TEMPORARY_FOLDER_H_

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace hookline {

inline std::string Fixture(const std::string& name) { return std::string(HOOKLINE_FIXTURES "/") + name; }

inline std::string ReadFile(const std::string& path) {
  std::stringstream contents;
  contents << std::ifstream(path, std::ios::binary).rdbuf();
  return contents.str();
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "hookline_text_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file and the folders that lead to it. Returns the file's path.
  std::string Write(const std::string& name, const std::string& contents) const {
    const std::filesystem::path path = std::filesystem::path(path_) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << contents;
    return path.string();
  }

 private:
  std::string path_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_TEXT_TEMPORARY_FOLDER_H_
