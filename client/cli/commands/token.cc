#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "server/base/sha256.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

// Nobody can guess 256 random bits, so a plain hash of them gives nothing away.
constexpr size_t kTokenBytes = 32;
// People and scanners of leaked secrets recognise a token by this prefix.
constexpr char kTokenPrefix[] = "hkl_";

struct TokenFlags {
  std::string name = "NAME";
  std::string out;
};

// Writes a file that only its owner can read, and never replaces an existing one.
absl::Status WriteSecret(const std::string& path, const std::string& text) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0) return absl::InvalidArgumentError(absl::StrCat("--out: ", path, ": ", std::strerror(errno)));
  const bool is_written = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  return close(file) == 0 && is_written ? absl::OkStatus() : absl::ErrnoToStatus(errno, path);
}

absl::Status Run(const TokenFlags& flags) {
  std::array<char, kTokenBytes> random;
  if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return absl::ErrnoToStatus(errno, "getrandom");
  }
  std::string token;
  absl::WebSafeBase64Escape({random.data(), random.size()}, &token);
  token = absl::StrCat(kTokenPrefix, token);
  const Sha256 digest = Sha256Of(token);
  const std::string digits = absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), digest.size()});
  const std::string line = absl::StrCat("{\"name\":\"", flags.name, "\",\"token_sha256\":\"", digits,
                                        "\",\"roles\":[\"read\",\"capture\"]}");
  if (flags.out.empty()) {
    std::fputs(absl::StrCat(token, "\n", line, "\n").c_str(), stdout);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(WriteSecret(flags.out, absl::StrCat(token, "\n")));
  std::fputs(absl::StrCat(line, "\n").c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddTokenCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("token", "Makes a token, and its entry for the server's auth file");
  command->footer(
      "Prints the token, which the client keeps secret, and then the client's entry for the server's --auth-file, "
      "which holds only the token's SHA-256. `hookline token --name alice --out alice.token` writes the token to a "
      "file that --token-file reads, and prints the entry.");
  auto flags = std::make_shared<TokenFlags>();
  command->add_option("--name", flags->name, "The client's name")
      ->check([](const std::string& name) {
        for (const char c : name) {
          const bool is_fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                               c == '_' || c == '-' || c == '@';
          if (!is_fine) return std::string("names can have the characters A-Z a-z 0-9 . _ - @");
        }
        return std::string(name.empty() || name.size() > 64 ? "names have 1 to 64 characters" : "");
      })
      ->type_name("NAME");
  command->add_option("--out", flags->out, "Write the token to this file, which only its owner can read")
      ->type_name("FILE");
  command->callback([flags, &invocation] { invocation.run = [flags] { return Run(*flags); }; });
}

}  // namespace hookline::cli
