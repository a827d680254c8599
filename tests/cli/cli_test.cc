// Tests the program `hookline`, run as a process, against a server in this one.
#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/cli/fake_server.h"
#include "tests/cli/program.h"
#include "tests/cli/safetensors_file.h"

namespace hookline::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kResid[] = "blocks.0.hook_resid_post";
constexpr char kMlp[] = "blocks.1.hook_mlp_out";
constexpr char kOdd[] = "odd/name";

class CliTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/hookline-cli-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    out_ = directory_ + "/rows";
    unsetenv("HOOKLINE_SERVER");
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string File(const std::string& name, const std::string& contents) {
    const std::string path = absl::StrCat(directory_, "/", name);
    WriteFile(path, contents);
    return path;
  }

  // Writes five sequences, 17 ids in all.
  std::string Tokens() { return File("ids.txt", "1 2 3\n10,11,12,13\n\n20\n30, 31 32\t33 34\r\n40 41 42 43"); }

  std::vector<std::string> CaptureArguments(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"capture", "--server", server_.address()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  ProgramResult Run(const std::vector<std::string>& arguments, const std::string& input = "") {
    return Program(directory_, arguments, input).Wait();
  }
  ProgramResult Capture(std::vector<std::string> more, const std::string& input = "") {
    return Run(CaptureArguments(std::move(more)), input);
  }

  // Returns the names of the files in `out`, hidden ones included.
  std::vector<std::string> Files(const std::string& out) {
    std::vector<std::string> names;
    if (!std::filesystem::exists(out)) return names;
    for (const auto& entry : std::filesystem::directory_iterator(out)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  static void ExpectOneLine(const std::string& errors, const std::string& part) {
    EXPECT_THAT(errors, HasSubstr(part));
    EXPECT_EQ(std::count(errors.begin(), errors.end(), '\n'), 1) << errors;
    EXPECT_EQ(errors.rfind("hookline: ", 0), 0U) << errors;
  }

  FakeServer server_;
  std::string directory_;
  std::string out_;
};

TEST_F(CliTest, TellsTheModelsAndTheirHookPoints) {
  ProgramResult result = Run({"models", "--server", server_.address()});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("1,234,567"));
  EXPECT_THAT(result.output, HasSubstr("00112233445566778899aabbccddeeff"));
  EXPECT_EQ(Run({"--server", server_.address(), "models"}).output, result.output);
  setenv("HOOKLINE_SERVER", server_.address().c_str(), 1);
  result = Run({"hooks", "--model", "fake"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("odd/name"));
  EXPECT_THAT(result.output, HasSubstr("The token as a number."));
}

TEST_F(CliTest, WritesOneFileForEachHookPointThatNamesItExactly) {
  ProgramResult result =
      Capture({"--hook-points", absl::StrCat(kResid, ",", kOdd), "--tokens", Tokens(), "--out", out_, "--provenance"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(Files(out_), ElementsAre("blocks.0.hook_resid_post.safetensors", "odd_name.safetensors"));
  const std::vector<uint32_t> ids = {1, 2, 3, 10, 11, 12, 13, 20, 30, 31, 32, 33, 34, 40, 41, 42, 43};
  for (int index : {0, 1}) {
    SafetensorsFile file = ReadSafetensors(absl::StrCat(out_, "/", Files(out_)[index]));
    const std::string name = index == 0 ? kResid : kOdd;
    EXPECT_EQ(file.metadata["hook_point"], name);
    EXPECT_EQ(file.metadata["model"], "fake");
    EXPECT_EQ(file.metadata["fingerprint"], "00112233445566778899aabbccddeeff");
    EXPECT_EQ(file.metadata["stop_reason"], "source_ended");
    ASSERT_EQ(file.tensors.size(), 4U);
    EXPECT_EQ(file.tensors[name].dtype, "F32");
    EXPECT_THAT(file.tensors[name].shape, ElementsAre(17, kFakeWidth));
    std::vector<float> values;
    for (uint32_t id : ids) {
      for (int column = 0; column < kFakeWidth; ++column) values.push_back(FakeValue(name, id, column));
    }
    EXPECT_EQ(file.tensors[name].As<float>(), values);
    EXPECT_EQ(file.tensors["provenance/token_id"].dtype, "I64");
    EXPECT_EQ(file.tensors["provenance/token_id"].As<int64_t>(), std::vector<int64_t>(ids.begin(), ids.end()));
    EXPECT_THAT(file.tensors["provenance/sequence"].As<int64_t>(),
                ElementsAre(0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4));
    EXPECT_THAT(file.tensors["provenance/position"].As<int32_t>(),
                ElementsAre(0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 0, 1, 2, 3));
  }
  EXPECT_THAT(result.output, HasSubstr("mean row norm"));
  EXPECT_THAT(result.output, HasSubstr("12.5"));
}

TEST_F(CliTest, BudgetsThatDifferMakeFilesOfDifferentLength) {
  ProgramResult result =
      Capture({"--hook-points", kResid, "--hook-points", kMlp, "--tokens", Tokens(), "--out", out_, "--max-activations",
               "5", "--max-activations-for", absl::StrCat(kMlp, "=1"), "--provenance", "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.errors, "");
  SafetensorsFile resid = ReadSafetensors(absl::StrCat(out_, "/", kResid, ".safetensors"));
  SafetensorsFile mlp = ReadSafetensors(absl::StrCat(out_, "/", kMlp, ".safetensors"));
  EXPECT_EQ(resid.metadata["stop_reason"], "budget");
  EXPECT_THAT(resid.tensors[kResid].shape, ElementsAre(5, kFakeWidth));
  EXPECT_THAT(resid.tensors["provenance/token_id"].As<int64_t>(), ElementsAre(1, 2, 3, 10, 11));
  EXPECT_THAT(mlp.tensors[kMlp].shape, ElementsAre(1, kFakeWidth));
  EXPECT_THAT(mlp.tensors["provenance/token_id"].As<int64_t>(), ElementsAre(1));
}

TEST_F(CliTest, ContinuesAfterBrokenConnectionsWithTheSameBytes) {
  const std::vector<std::string> arguments = {
      "--hook-points", absl::StrCat(kResid, ",", kMlp), "--tokens", Tokens(), "--provenance", "--out"};
  std::vector<std::string> undisturbed = arguments;
  undisturbed.push_back(out_);
  ASSERT_EQ(Capture(undisturbed).exit_code, 0);
  // The call breaks between the chunks of a row group, before the first chunk, and twice in a row.
  for (int chunks : {3, 0, 0, 5}) server_.BreakAfter(chunks);
  std::vector<std::string> disturbed = arguments;
  disturbed.push_back(out_ + "2");
  ProgramResult result = Capture(disturbed);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors, HasSubstr("the connection broke; continuing in 250ms (attempt 1 of 10)"));
  ASSERT_EQ(Files(out_ + "2").size(), 2U);
  for (const std::string& name : Files(out_)) {
    EXPECT_EQ(ReadFile(absl::StrCat(out_, "/", name)), ReadFile(absl::StrCat(out_, "2/", name))) << name;
  }
}

TEST_F(CliTest, ContinuesADatasetToo) {
  server_.BreakAfter(3);
  ProgramResult result =
      Capture({"--hook-points", kResid, "--dataset", "counting", "--sequence-length", "3", "--out", out_, "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  SafetensorsFile file = ReadSafetensors(absl::StrCat(out_, "/", kResid, ".safetensors"));
  EXPECT_THAT(file.tensors[kResid].shape, ElementsAre(15, kFakeWidth));
}

TEST_F(CliTest, SaysThatStandardInputCannotBeReadAgain) {
  server_.BreakAfter(1);
  ProgramResult result =
      Capture({"--hook-points", kResid, "--tokens", "-", "--out", out_, "--quiet"}, "1 2 3\n4 5 6 7\n");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.errors, HasSubstr("standard input cannot be read a second time"));
  EXPECT_THAT(Files(out_), IsEmpty());
}

TEST_F(CliTest, ReadsIdsFromStandardInput) {
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", "-", "--quiet"}, "1 2 3\n4 5");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(server_.sequences(), ElementsAre(ElementsAre(1, 2, 3), ElementsAre(4, 5)));
}

TEST_F(CliTest, AnInterruptCancelsTheCaptureAndLeavesNoFile) {
  for (int signal : {SIGINT, SIGTERM}) {
    FakeServer server;
    Program program(directory_,
                    {"capture", "--server", server.address(), "--hook-points", kResid, "--tokens", "-", "--out", out_,
                     "--provenance", "--quiet"},
                    "1 2 3\n", Input::kStaysOpen);
    ASSERT_TRUE(server.WaitUntilStarted());
    program.Signal(signal);
    ProgramResult result = program.Wait();
    EXPECT_EQ(result.exit_code, 130);
    ExpectOneLine(result.errors, "interrupted");
    EXPECT_TRUE(server.WaitUntilCancelled());
    EXPECT_THAT(Files(out_), IsEmpty());
  }
}

TEST_F(CliTest, ByteTokensAreCutAtTheContextWithTheirFirstTokenPrepended) {
  const std::string text = File("text", "Hello, w\xc3\xb6rld!");
  ProgramResult result = Capture(
      {"--hook-points", kResid, "--tokens", text, "--token-format", "bytes", "--prepend-token", "256", "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(server_.sequences(), ElementsAre(ElementsAre(256, 'H', 'e', 'l', 'l', 'o', ',', ' '),
                                               ElementsAre(256, 'w', 0xc3, 0xb6, 'r', 'l', 'd', '!')));
}

TEST_F(CliTest, ArraysAreCutOrTakenRowByRow) {
  const auto npy = [](const std::string& shape, int count) {
    std::string header = absl::StrCat("{'descr': '<u2', 'fortran_order': False, 'shape': ", shape, ", }");
    header.resize(117, ' ');
    header += '\n';
    std::string file = std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header;
    for (int i = 0; i < count; ++i) file += {static_cast<char>(i), 1};
    return file;
  };
  ProgramResult result = Capture(
      {"--hook-points", kResid, "--tokens", File("flat.npy", npy("(7,)", 7)), "--sequence-length", "3", "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(server_.sequences(),
              ElementsAre(ElementsAre(256, 257, 258), ElementsAre(259, 260, 261), ElementsAre(262)));
  FakeServer other;
  result = Run({"capture", "--server", other.address(), "--hook-points", kResid, "--tokens",
                File("rows.npy", npy("(2, 3)", 6)), "--bos", "9", "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(other.sequences(), ElementsAre(ElementsAre(9, 256, 257, 258), ElementsAre(9, 259, 260, 261)));
}

TEST_F(CliTest, BinaryIdsWithoutAHeaderAreReadAsTheTypeSays) {
  const std::string ids("\x01\x00\x02\x01\x03\x00", 6);
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", File("part-0-00000.npy", ids), "--quiet"});
  EXPECT_EQ(result.exit_code, 1);
  ExpectOneLine(result.errors, "part-0-00000.npy: not a .npy file");
  const std::string path = File("part-0-00000.bin", ids);
  result = Capture({"--hook-points", kResid, "--tokens", path, "--quiet"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "line 1: '\\x01\\x00");
  result = Capture({"--hook-points", kResid, "--tokens", path, "--token-format", "uint16", "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(server_.sequences(), ElementsAre(ElementsAre(1, 258, 3)));
}

TEST_F(CliTest, AByteOrderMarkIsNoToken) {
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens",
                                  File("bom",
                                       "\xef\xbb\xbf"
                                       "1 2\n3"),
                                  "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(server_.sequences(), ElementsAre(ElementsAre(1, 2), ElementsAre(3)));
  result = Capture({"--hook-points", kResid, "--tokens",
                    File("utf16", std::string("\xff\xfe"
                                              "1\0 \0",
                                              6)),
                    "--quiet"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "utf16: text in UTF-16, as its byte order mark says; save it as UTF-8");
}

TEST_F(CliTest, AFileWithoutTokensIsAnError) {
  for (const char* contents : {"", "\n\n", "\xef\xbb\xbf"}) {
    ProgramResult result = Capture({"--hook-points", kResid, "--tokens", File("empty", contents), "--quiet"});
    EXPECT_EQ(result.exit_code, 2);
    ExpectOneLine(result.errors, "empty: holds no tokens");
  }
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", "-", "--quiet"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "holds no tokens");
  result = Capture({"--hook-points", kResid, "--tokens", File("b", ""), "--token-format", "bytes", "--quiet"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "b: holds no tokens");
}

TEST_F(CliTest, SaysThatTheServersCapEndedACapture) {
  std::string ids;
  for (int i = 0; i < 1500; ++i) ids += "1\n";
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", File("many.txt", ids), "--quiet"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  ExpectOneLine(result.errors, "blocks.0.hook_resid_post ended at the server's cap of 1,000 rows (--max-rows)");
  result =
      Capture({"--hook-points", kResid, "--tokens", File("few.txt", "1 2 3"), "--quiet", "--max-activations", "2"});
  EXPECT_EQ(result.errors, "");
}

TEST_F(CliTest, SaysThatNoTokenStandsFirstInAllSequences) {
  std::string mixed, alike;
  for (int i = 0; i < 64; ++i) {
    absl::StrAppend(&mixed, i, " 1\n");
    absl::StrAppend(&alike, "9 ", i, "\n");
  }
  const auto errors = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"--hook-points", kResid, "--quiet", "--max-activations", "1000"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = Capture(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.errors;
  };
  const std::string mixed_file = File("mixed.txt", mixed);
  ExpectOneLine(errors({"--tokens", mixed_file}), "the sequences do not all begin with the same token");
  EXPECT_EQ(errors({"--tokens", mixed_file, "--prepend-token", "9"}), "");
  EXPECT_EQ(errors({"--tokens", mixed_file, "--skip-first", "1"}), "");
  EXPECT_EQ(errors({"--tokens", File("alike.txt", alike)}), "");
}

TEST_F(CliTest, SendsManyTokensInMessagesBelowFourMebibytes) {
  std::string ids;
  for (int i = 0; i < 3000; ++i)
    ids += std::string(1000, ' ') + absl::StrJoin(std::vector<int>(500, 123456), ",") + "\n";
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", File("many.txt", ids), "--quiet", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_LT(server_.largest_message_bytes(), 4 << 20);
  EXPECT_GT(server_.largest_message_bytes(), 64 << 10);
  EXPECT_EQ(nlohmann::json::parse(result.output)["hook_points"][0]["rows"], 1000);
}

TEST_F(CliTest, TellsScriptsWhatCame) {
  ProgramResult result =
      Capture({"--hook-points", kMlp, "--tokens", Tokens(), "--max-activations", "4", "--json", "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const nlohmann::json json = nlohmann::json::parse(result.output);
  EXPECT_EQ(json["stop_reason"], "budget");
  EXPECT_EQ(json["bytes"], 4 * kFakeWidth * 4);
  EXPECT_EQ(json["hook_points"][0]["hook_point"], kMlp);
  EXPECT_EQ(json["hook_points"][0]["nan_count"], 3);
}

TEST_F(CliTest, TheReportCoversAllCallsOfACapture) {
  server_.ShutDownAfter(3);
  ProgramResult result = Capture({"--hook-points", kMlp, "--dataset", "counting", "--sequence-length", "3", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const nlohmann::json json = nlohmann::json::parse(result.output);
  EXPECT_EQ(json["hook_points"][0]["rows"], 15);
  EXPECT_EQ(json["hook_points"][0]["statistics_rows"], 15);
  EXPECT_EQ(json["hook_points"][0]["nan_count"], 2 * 3);
}

TEST_F(CliTest, PassesTheRequestOn) {
  ProgramResult result = Capture({"--hook-points",
                                  kResid,
                                  "--dataset",
                                  "counting",
                                  "--sequence-length",
                                  "3",
                                  "--first-sequence",
                                  "0",
                                  "--sequence-count",
                                  "4",
                                  "--prepend-token",
                                  "7",
                                  "--dtype",
                                  "bfloat16",
                                  "--skip-first",
                                  "1",
                                  "--position-end",
                                  "9",
                                  "--position-stride",
                                  "2",
                                  "--exclude-token",
                                  "3,4",
                                  "--sample-rows",
                                  "5",
                                  "--seed",
                                  "6",
                                  "--deterministic",
                                  "--model",
                                  "fake",
                                  "--quiet",
                                  "--max-activations",
                                  "2000"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  ASSERT_EQ(server_.requests().size(), 1U);
  EXPECT_THAT(server_.requests()[0].DebugString(),
              HasSubstr("dataset {\n  name: \"counting\"\n  sequence_length: 3\n  sequence_count: 4\n  "
                        "prepend_token_id: 7\n}\nmax_activations: 2000\ndtype: DTYPE_BFLOAT16\nselection {\n  "
                        "skip_first: 1\n  position_end: 9\n  position_stride: 2\n  exclude_token_ids: 3\n  "
                        "exclude_token_ids: 4\n  sample_rows: 5\n  seed: 6\n}\ndeterministic: true"));
  ExpectOneLine(result.errors, "the server grants 1,000 rows of blocks.0.hook_resid_post, its cap");
}

TEST_F(CliTest, NeverReplacesFilesUnasked) {
  const std::vector<std::string> arguments = {"--hook-points", kResid, "--tokens", Tokens(), "--quiet", "--out", out_};
  ASSERT_EQ(Capture(arguments).exit_code, 0);
  const std::string path = absl::StrCat(out_, "/", kResid, ".safetensors");
  WriteFile(path, "precious");
  ProgramResult result = Capture(arguments);
  EXPECT_EQ(result.exit_code, 1);
  ExpectOneLine(result.errors, "give --overwrite");
  EXPECT_EQ(ReadFile(path), "precious");
  EXPECT_EQ(Files(out_).size(), 1U);
  std::vector<std::string> overwrite = arguments;
  overwrite.push_back("--overwrite");
  EXPECT_EQ(Capture(overwrite).exit_code, 0);
  EXPECT_EQ(ReadSafetensors(path).tensors.size(), 1U);
}

TEST_F(CliTest, SaysInOneLineWhatTheServerObjectsTo) {
  ProgramResult result = Capture({"--hook-points", "blocks.9.nothing", "--tokens", Tokens(), "--out", out_});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, R"(`blocks.9.nothing` is not a hook point;\nnearest: odd/name)");
  result = Run({"hooks", "--server", server_.address(), "--model", "other"});
  EXPECT_EQ(result.exit_code, 1);
  ExpectOneLine(result.errors, "no model other; there is fake");
}

TEST_F(CliTest, SaysWhichTokenIsNone) {
  ProgramResult result =
      Capture({"--hook-points", kResid, "--tokens", File("bad", "1 2\n3 hello\n"), "--out", out_, "--quiet"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "bad, line 2: 'hello' is not a token id");
  EXPECT_THAT(Files(out_), IsEmpty());
  for (const char* word : {"-1", "4294967296", "1.5", "0x10", "999999999999999999999999999999999999999"}) {
    result = Capture({"--hook-points", kResid, "--tokens", File("bad", word), "--quiet"});
    EXPECT_EQ(result.exit_code, 2) << word;
    ExpectOneLine(result.errors, "line 1: ");
  }
}

TEST_F(CliTest, WrongUseEndsWithTwoAndAHint) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {},
           {"snapshot"},
           {"capture", "--tokens", "x"},
           {"capture", "--hook-points", kResid},
           {"capture", "--hook-points", kResid, "--tokens", "x", "--dataset", "y"},
           {"capture", "--hook-points", kResid, "--tokens", "x", "--dtype", "int16"},
           {"capture", "--hook-points", kResid, "--tokens", "x", "--max-activations", "many"},
           {"capture", "--hook-points", kResid, "--tokens", "x", "--provenance"}}) {
    ProgramResult result = Run(arguments);
    EXPECT_EQ(result.exit_code, 2) << absl::StrJoin(arguments, " ");
    ExpectOneLine(result.errors, "hookline --help");
  }
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", Tokens(), "--max-activations-for", "x"});
  EXPECT_EQ(result.exit_code, 2);
  ExpectOneLine(result.errors, "`x` is not NAME=ROWS");
}

TEST_F(CliTest, AnAbsentServerEndsWithThree) {
  std::string address;
  {
    FakeServer gone;
    address = gone.address();
  }
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"models", "--server", address},
           {"capture", "--server", address, "--hook-points", kResid, "--tokens", Tokens(), "--out", out_}}) {
    ProgramResult result = Run(arguments);
    EXPECT_EQ(result.exit_code, 3);
    ExpectOneLine(result.errors, "start hookline-server there");
  }
}

TEST_F(CliTest, ErrorsOfTheDiskNameThePath) {
  ProgramResult result = Capture({"--hook-points", kResid, "--tokens", directory_ + "/absent", "--quiet"});
  EXPECT_EQ(result.exit_code, 1);
  ExpectOneLine(result.errors, "/absent");
  const std::string file = File("file", "");
  result = Capture({"--hook-points", kResid, "--tokens", Tokens(), "--quiet", "--out", file + "/rows"});
  EXPECT_EQ(result.exit_code, 1);
  ExpectOneLine(result.errors, file + "/rows");
}

TEST_F(CliTest, HelpTellsTheExitCodesAndTheFlags) {
  ProgramResult result = Run({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.output, HasSubstr("Exit codes"));
  result = Run({"capture", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.output, HasSubstr("HOOKLINE_SERVER"));
  EXPECT_THAT(result.output, HasSubstr("Examples:"));
}

}  // namespace
}  // namespace hookline::cli
