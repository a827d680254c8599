// Runs the program `hookline`.
#ifndef HOOKLINE_TESTS_CLI_PROGRAM_H_
#define HOOKLINE_TESTS_CLI_PROGRAM_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace hookline::cli {

struct ProgramResult {
  int exit_code = -1;  // 128 + the signal if a signal ended it
  std::string output;
  std::string errors;
};

// Says whether standard input, a pipe, ends after the given text.
enum class Input { kEnds, kStaysOpen };

// A running program. Its output goes to files in `directory`.
class Program {
 public:
  Program(const std::string& directory, const std::vector<std::string>& arguments, const std::string& input = "",
          Input ends = Input::kEnds);
  // Ends the program if it still runs.
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void Signal(int signal) const;
  ProgramResult Wait();

 private:
  const std::string directory_;
  pid_t pid_ = -1;
  int input_ = -1;
};

std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& contents);

}  // namespace hookline::cli

#endif  // HOOKLINE_TESTS_CLI_PROGRAM_H_
