// Files for tests of the checkpoint readers.
#ifndef HOOKLINE_TESTS_CHECKPOINT_FILES_H_
#define HOOKLINE_TESTS_CHECKPOINT_FILES_H_

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

namespace hookline {

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// A folder that goes with its object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/hookline-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TemporaryFolder() { (void)!std::system(("rm -rf " + path_).c_str()); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string Write(const std::string& name, const std::string& contents) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << contents;
    return path_ + "/" + name;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_CHECKPOINT_FILES_H_
