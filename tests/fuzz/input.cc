#include "tests/fuzz/input.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/base/escape.h"

namespace hookline {

void CheckMessage(const absl::Status& status) {
  const absl::string_view message = status.message();
  if (message == Escaped(message)) return;
  std::fprintf(stderr, "a message holds raw bytes: %s\n", absl::CHexEscape(message).c_str());
  std::abort();
}

InputInMemory::InputInMemory()
    : descriptor_(memfd_create("input", 0)), path_(absl::StrCat("/proc/self/fd/", descriptor_)) {
  if (descriptor_ < 0) std::abort();
}

void InputInMemory::Set(absl::Span<const uint8_t> bytes) {
  if (ftruncate(descriptor_, 0) != 0 ||
      pwrite(descriptor_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
}

std::string MakeDirectory() {
  std::string path = (std::filesystem::exists("/dev/shm") ? std::filesystem::path("/dev/shm")
                                                          : std::filesystem::temp_directory_path()) /
                     "hookline-fuzz-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) std::abort();
  static std::string made;
  made = path;
  std::atexit([] {
    std::error_code ignored;
    std::filesystem::remove_all(made, ignored);
  });
  return path;
}

}  // namespace hookline
