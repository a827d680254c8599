// Gives the fuzzers their input as text or as a file, and checks every error message.
#ifndef HOOKLINE_TESTS_FUZZ_INPUT_H_
#define HOOKLINE_TESTS_FUZZ_INPUT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace hookline {

inline absl::string_view AsText(const uint8_t* data, size_t bytes) {
  return {reinterpret_cast<const char*>(data), bytes};
}

// Ends the fuzzer if the message of `status` cannot be shown as it is (server/base/escape.h).
void CheckMessage(const absl::Status& status);

// A file in memory that holds one input after another. Each fuzzer has one.
class InputInMemory {
 public:
  InputInMemory();
  void Set(absl::Span<const uint8_t> bytes);
  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

// Makes a directory for the files of this process, in memory if the system has room for that.
std::string MakeDirectory();

}  // namespace hookline

#endif  // HOOKLINE_TESTS_FUZZ_INPUT_H_
