#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/recording_read.h"
#include "client/cli/files/export_manifest.h"
#include "client/cli/files/row_files.h"
#include "client/cpp/client.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(pt: a tensor that torch.load reads, also with weights_only. As with the original collector, the file's name is
the hook point's with dots replaced by underscores. npy: NumPy's format, for float32 and float16. safetensors: as
hookline read writes it. manifest.json, which is written last, gives the exact name of the hook point in each file.)";

struct ExportFlags : RecordingReadFlags {
  std::string format;
};

FileFormat FormatOf(const std::string& name) {
  return name == "pt" ? FileFormat::kPt : name == "npy" ? FileFormat::kNpy : FileFormat::kSafetensors;
}

absl::Status Run(const ExportFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  const std::string manifest = ExportManifestPath(flags.out);
  if (std::error_code error; !flags.overwrite && std::filesystem::exists(manifest, error)) {
    return absl::AlreadyExistsError(absl::StrCat(manifest, " exists; choose another --out, or give --overwrite"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  ASSIGN_OR_RETURN(Transfer transfer, MakeRecordingRead(flags, *client));
  transfer.format = FormatOf(flags.format);
  transfer.on_finished = [&](const CaptureResult& result, const RowFiles& files) {
    return WriteExportManifest(flags.out, flags.name, result, files);
  };
  return RunTransfer(flags, transfer, server.address, interrupt);
}

}  // namespace

void AddExportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("export", "Writes a recording as one .pt, .npy or .safetensors file per hook point");
  command->footer(kFooter);
  auto flags = std::make_shared<ExportFlags>();
  AddServerOption(*command, invocation);
  AddRecordingReadOptions(*command, *flags);
  command->add_option("--format", flags->format, "Format of the files")
      ->check(CLI::IsMember({"pt", "npy", "safetensors"}))
      ->required();
  command->add_option("--out", flags->out, "Directory for the files")->type_name("DIR")->required();
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
