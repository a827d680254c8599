#include "tests/cli/program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <utility>

#include "gtest/gtest.h"

namespace hookline::cli {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void WriteFile(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

Program::Program(const std::string& directory, const std::vector<std::string>& arguments, const std::string& input,
                 Input ends)
    : directory_(directory) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  // Standard input is a pipe, which cannot be read twice.
  int input_pipe[2];
  EXPECT_EQ(pipe2(input_pipe, O_CLOEXEC), 0);
  posix_spawn_file_actions_adddup2(&actions, input_pipe[0], 0);
  posix_spawn_file_actions_addopen(&actions, 1, (directory + "/stdout").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_addopen(&actions, 2, (directory + "/stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  std::vector<char*> argv = {const_cast<char*>(HOOKLINE_PROGRAM)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  EXPECT_EQ(posix_spawn(&pid_, HOOKLINE_PROGRAM, &actions, nullptr, argv.data(), environ), 0) << HOOKLINE_PROGRAM;
  posix_spawn_file_actions_destroy(&actions);
  // The input is small enough for the pipe's buffer.
  EXPECT_EQ(write(input_pipe[1], input.data(), input.size()), static_cast<ssize_t>(input.size()));
  close(input_pipe[0]);
  input_ = input_pipe[1];
  if (ends == Input::kEnds) close(std::exchange(input_, -1));
}

Program::~Program() {
  if (pid_ >= 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (input_ >= 0) close(input_);
}

void Program::Signal(int signal) const { kill(pid_, signal); }

ProgramResult Program::Wait() {
  int status = 0;
  EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  ProgramResult result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.output = ReadFile(directory_ + "/stdout");
  result.errors = ReadFile(directory_ + "/stderr");
  return result;
}

}  // namespace hookline::cli
