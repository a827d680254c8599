// Tests the limits of a TorchScript file. Each test of a refused operator makes it write to a file, which must not
// exist afterwards.
#include <caffe2/serialize/inline_container.h>
#include <gmock/gmock.h>

#include <functional>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "tests/formats/archive_writer.h"
#include "tests/torchscript/torchscript_testing.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kPlain[] = "def forward(self, ids):\n  return self.table[ids]\n";

class ScriptProgramTest : public ::testing::Test {
 protected:
  // Saves a module whose only attribute is a table of ten rows of width 4. Returns its path.
  std::string Save(const std::string& code) {
    torch::jit::Module module("Whole");
    module.register_attribute("table", c10::TensorType::get(), at::ones({10, 4}));
    module.define(code);
    module.save(folder_.File("module.pt"));
    return folder_.File("module.pt");
  }

  // Does the same, but changes the text of its code in ways that no compiler would.
  std::string SaveEdited(const std::string& code, const std::function<std::string(std::string)>& edit) {
    const std::string path = Save(code);
    caffe2::serialize::PyTorchStreamReader reader(path);
    ZipWriter writer;
    for (const std::string& name : reader.getAllRecords()) {
      auto [bytes, size] = reader.getRecord(name);
      std::string data(static_cast<const char*>(bytes.get()), size);
      if (absl::StartsWith(name, "code/") && absl::EndsWith(name, ".py")) data = edit(data);
      if (!absl::EndsWith(name, ".debug_pkl")) writer.Add({"module/" + name, data});
    }
    WriteFile(path, writer.Write());
    return path;
  }

  // Saves kPlain with `statements` at the start of its forward.
  std::string SaveWith(const std::vector<std::string>& statements) {
    return SaveEdited(kPlain, [&](std::string text) {
      std::string lines;
      for (const std::string& statement : statements) absl::StrAppend(&lines, "    ", statement, "\n");
      const std::string end_of_head = "-> Tensor:\n";
      const size_t at = text.find(end_of_head);
      EXPECT_NE(at, std::string::npos) << text;
      return text.insert(at + end_of_head.size(), lines);
    });
  }

  static absl::StatusOr<std::unique_ptr<Model>> LoadPath(const std::string& path) {
    TorchScriptOptions options;
    options.path = path;
    options.timeout = absl::Milliseconds(300);
    return LoadTorchScript(options);
  }

  std::string RefusalOf(const std::string& path) {
    const absl::Status status = LoadPath(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.message(), HasSubstr(path));
    EXPECT_FALSE(std::filesystem::exists(victim())) << status;
    return std::string(status.message());
  }

  std::string victim() const { return folder_.File("victim"); }
  // Returns the arguments of a call of torch.from_file that would create the file.
  std::string arguments() const { return absl::StrCat("(\"", victim(), "\", True, 16)"); }

  TemporaryFolder folder_;
};

TEST_F(ScriptProgramTest, CodeThatReachesFilesIsRefusedHoweverItIsWritten) {
  const std::vector<std::vector<std::string>> cases = {
      {"t = torch.from_file" + arguments()},
      {"ff = torch.from_file", "t = ff" + arguments()},
      {"t = (torch.from_file # x", "      " + arguments() + ")"},
      {"t = torch.from_file \\", "     " + arguments()},
      {"ff = ops.aten.from_file", "t = ff" + arguments()},
  };
  for (std::vector<std::string> statements : cases) {
    statements.push_back("ids = torch.add(ids, int(torch.sum(t)))");
    EXPECT_THAT(RefusalOf(SaveWith(statements)), AllOf(HasSubstr("'forward'"), HasSubstr("'aten::from_file'")));
  }
  EXPECT_THAT(RefusalOf(SaveWith({"sv = torch.save", "_0 = sv(1, \"" + victim() + "\")"})), HasSubstr("'aten::save'"));
}

TEST_F(ScriptProgramTest, MethodsAndFunctionsThatForwardCallsOrNobodyCallsAreLookedAtToo) {
  EXPECT_THAT(RefusalOf(Save(absl::StrCat("def other(self, ids):\n  return torch.from_file('", victim(),
                                          "', True, 16)\n", kPlain))),
              AllOf(HasSubstr("'other'"), HasSubstr("'aten::from_file'")));
  EXPECT_THAT(RefusalOf(Save(absl::StrCat("def other(self, ids):\n  if int(ids.max()) > 100:\n    ids = ids + "
                                          "int(torch.from_file('",
                                          victim(), "', True, 16).sum())\n  return ids\n",
                                          "def forward(self, ids):\n  return self.table[self.other(ids)]\n"))),
              AllOf(HasSubstr("'other'"), HasSubstr("'aten::from_file'")));
}

TEST_F(ScriptProgramTest, WhatCompilingWouldRunIsRefused) {
  const auto with_default = [&](const std::string& type, const std::string& value) {
    return SaveEdited(kPlain, [&](std::string text) {
      const size_t at = text.find("ids: Tensor");
      return text.insert(at + strlen("ids: Tensor"), absl::StrCat(", x: ", type, "=", value));
    });
  };
  EXPECT_THAT(RefusalOf(with_default("Tensor", "torch.from_file" + arguments())), HasSubstr("default value"));
  EXPECT_THAT(RefusalOf(with_default("Tensor", "[torch.from_file" + arguments() + "][0]")), HasSubstr("default value"));
  EXPECT_TRUE(LoadPath(with_default("float", "float('inf')")).ok());
  EXPECT_TRUE(LoadPath(with_default("Tuple[int, float]", "(1, -2.0)")).ok());
}

TEST_F(ScriptProgramTest, SetStateIsRunOnlyWhereItComputesAndEnds) {
  const auto with_set_state = [&](const std::string& line) {
    return Save(absl::StrCat("def __getstate__(self):\n  return self.table\n",
                             "def __setstate__(self, state: Tensor):\n", line, "  self.table = state\n", kPlain));
  };
  const auto model = LoadPath(with_set_state(""));
  EXPECT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(RefusalOf(with_set_state("  state = state + torch.from_file('" + victim() + "', True, 16).sum()\n")),
              AllOf(HasSubstr("'__setstate__'"), HasSubstr("'aten::from_file'")));
  EXPECT_THAT(RefusalOf(with_set_state("  n = 1\n  while n > 0:\n    n = n + 1\n  state = state * n\n")),
              AllOf(HasSubstr("'__setstate__'"), HasSubstr("'prim::Loop'")));
}

TEST_F(ScriptProgramTest, NothingThatAFileSaysIsPrinted) {
  EXPECT_THAT(RefusalOf(Save("def forward(self, ids):\n  print('forged')\n  return self.table[ids]\n")),
              HasSubstr("'prim::Print'"));
  ::testing::internal::CaptureStderr();
  const auto model = LoadPath(SaveWith({"torch.warn(\"forged\", 2)"}));
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), Not(HasSubstr("forged")));
  EXPECT_TRUE(model.ok()) << model.status();
}

TEST_F(ScriptProgramTest, AModuleWhoseTrialRunDoesNotEndIsRefused) {
  EXPECT_THAT(RefusalOf(Save("def forward(self, ids):\n  n = 1\n  while n > 0:\n    n = n + 1 - 1\n"
                             "  return self.table[ids] * n\n")),
              AllOf(HasSubstr("did not end within 300ms"), HasSubstr("--torchscript-timeout")));
}

TEST_F(ScriptProgramTest, APassThatDoesNotEndIsEndedAndTheNextOneRuns) {
  // The loop is endless only for the token 3, which the trial run does not have.
  auto model =
      LoadPath(Save("def step(self, ids, n: int):\n  while int(ids.max()) == 3:\n    n = n + 1\n  return n\n"
                    "def forward(self, ids):\n  n = 1\n  if int(ids.max()) > 0:\n    n = self.step(ids, n)\n"
                    "  return self.table[ids] * n\n"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(Values(**model, Ids({{1, 3}}), {"output"}).status().message(), HasSubstr("did not end within 300ms"));
  EXPECT_TRUE(Values(**model, Ids({{1, 2}}), {"output"}).ok());
}

}  // namespace
}  // namespace hookline
