#include "server/flags.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/name.h"
#include "server/flag_declarations.h"

namespace hookline {
namespace {

struct NamedPath {
  std::string name;  // empty: none given
  std::string path;
};

// Splits NAME=PATH. Names have no slashes, so that `NAME=` before a path is not taken for a part of the path.
NamedPath SplitName(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || !IsName(text.substr(0, equals))) return {"", text};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

constexpr char kDescription[] =
    "Keeps language models on a device and streams the activations that clients ask for.\n\n"
    "  hookline-server --model checkpoints/d20\n"
    "  hookline-server --model demo=tests/fixtures/nanochat/demo --dataset pile=pile.npy --listen 0.0.0.0:7471";

constexpr char kFooter[] =
    "Every flag can be given as an environment variable instead, named beside it (Env:); the flag wins. Sizes take "
    "units (64KiB, 1MiB). Without --auth-file anyone who can connect may use the server.\n\n"
    "SIGHUP reads the auth file and the TLS files again. SIGTERM and SIGINT shut the server down gracefully, "
    "within --drain-timeout and ten seconds more; a second one ends it at once.\n\n"
    "Exit codes: 0 ended as asked, 1 failed, 2 wrong flags.";

void ReadDictionaries(const std::vector<std::string>& dictionaries, ServerFlags* flags) {
  if (dictionaries.empty()) return;
  if (flags->models.size() != 1) {
    throw CLI::ValidationError("--dictionary",
                               absl::StrCat("needs one --model; the number given is ", flags->models.size()));
  }
  std::set<std::string> names;
  for (const std::string& text : dictionaries) {
    NamedPath named = SplitName(text);
    DictionaryOptions options;
    // A path may hold `@`, but a hook point has no slash.
    const size_t at = named.path.rfind('@');
    if (at != std::string::npos && named.path.find('/', at) == std::string::npos) {
      options.hook_point = named.path.substr(at + 1);
      named.path.resize(at);
    }
    options.name = named.name;
    options.path = named.path;
    if (options.name.empty() || options.path.empty()) {
      throw CLI::ValidationError("--dictionary",
                                 absl::StrCat("`", text,
                                              "` is not NAME=PATH or NAME=PATH@HOOK with a name of letters, "
                                              "digits, `.`, `_` and `-`"));
    }
    if (!names.insert(options.name).second) {
      throw CLI::ValidationError("--dictionary", absl::StrCat("two dictionaries are named `", options.name, "`"));
    }
    flags->models[0].dictionaries.push_back(std::move(options));
  }
}

// Reads the values of --tokenizer; throws as CLI11 does.
void ReadTokenizers(const std::vector<std::string>& tokenizers, ServerFlags* flags) {
  std::set<std::string> names;
  for (const std::string& text : tokenizers) {
    const NamedPath named = SplitName(text);
    if (named.name.empty() || named.path.empty()) {
      throw CLI::ValidationError("--tokenizer", absl::StrCat("`", text, "` is not NAME=PATH with a model's name"));
    }
    if (!names.insert(named.name).second) {
      throw CLI::ValidationError("--tokenizer", absl::StrCat("model `", named.name, "` is given two tokenizers"));
    }
    const auto is_named = [&named](const ModelOptions& model) { return ModelName(model) == named.name; };
    if (std::none_of(flags->models.begin(), flags->models.end(), is_named)) {
      throw CLI::ValidationError("--tokenizer", absl::StrCat("no --model is named `", named.name, "`"));
    }
    flags->tokenizers.push_back({named.name, named.path});
  }
}

// Reads the values of --model, --dataset and --dictionary; throws as CLI11 does.
void ReadLists(const FlagLists& lists, const ModelOptions& model, ServerFlags* flags) {
  if (!flags->recordings_folder.empty() && flags->recordings_dir.empty()) {
    throw CLI::ValidationError("--recordings-folder", "is a folder in --recordings-dir, which is missing");
  }
  if (lists.models.empty() && flags->recordings_dir.empty()) {
    throw CLI::RequiredError("--model PATH (or HOOKLINE_MODEL), a checkpoint to serve,");
  }
  std::set<std::string> names;
  for (const std::string& text : lists.models) {
    const NamedPath named = SplitName(text);
    if (named.path.empty()) throw CLI::ValidationError("--model", absl::StrCat("`", text, "` has no path"));
    if (!named.name.empty() && !names.insert(named.name).second) {
      throw CLI::ValidationError("--model", absl::StrCat("two models are named `", named.name, "`"));
    }
    flags->models.push_back(model);
    flags->models.back().name = named.name;
    flags->models.back().path = named.path;
  }
  names.clear();
  for (const std::string& text : lists.datasets) {
    const NamedPath named = SplitName(text);
    if (named.name.empty() || named.path.empty()) {
      throw CLI::ValidationError(
          "--dataset", absl::StrCat("`", text, "` is not NAME=PATH with a name of letters, digits, `.`, `_` and `-`"));
    }
    if (!names.insert(named.name).second) {
      throw CLI::ValidationError("--dataset", absl::StrCat("two datasets are named `", named.name, "`"));
    }
    flags->datasets.push_back({named.name, named.path});
  }
  ReadDictionaries(lists.dictionaries, flags);
}

}  // namespace

std::optional<int> ParseFlags(int argc, const char* const* argv, ServerFlags* flags) {
  CLI::App app(kDescription, "hookline-server");
  app.footer(kFooter);
  app.set_version_flag("--version", "hookline-server " HOOKLINE_VERSION);
  app.get_formatter()->column_width(40);
  // An error quotes arguments and environment variables, which may contain any bytes.
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return CLI::FailureMessage::simple(
        failed, CLI::Error(error.get_name(), Escaped(error.what()), CLI::ExitCodes(error.get_exit_code())));
  });
  FlagLists lists;
  ModelOptions model;
  DeclareFlags(&app, flags, &lists, &model);
  try {
    app.parse(argc, argv);
    ReadLists(lists, model, flags);
    ReadTokenizers(lists.tokenizers, flags);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return std::nullopt;
}

}  // namespace hookline
