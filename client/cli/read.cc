#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/cli/capture_request.h"
#include "client/cli/commands.h"
#include "client/cli/export_manifest.h"
#include "client/cli/report.h"
#include "client/cli/transfer.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kReadFooter[] =
    R"(Examples:
  Every tenth of a million rows, in an order that the seed decides:
    hookline read pile-resid --hook-points 'blocks.{2,5}.*' --row-count 100000 --shuffle-seed 1 --out rows
  How fast they come, writing nothing:
    hookline read pile-resid

The files are those of hookline capture.)";

constexpr char kExportFooter[] =
    R"(pt: a tensor that torch.load reads (weights_only too), under the name that the original collector gives it, the hook
point with its dots replaced by underscores. npy: NumPy's, for float32 and float16. safetensors: as hookline read.
manifest.json, written last, says which hook point, with its exact name, is in which file.)";

struct ReadFlags : TransferFlags, HookPointFlags {
  std::string name;
  int64_t first_row = 0;
  int64_t row_count = 0;
  std::optional<uint64_t> shuffle_seed;
  std::string format = "safetensors";
  bool manifest = false;  // write one
};

absl::StatusOr<v1::ReadRecordingRequest> MakeRequest(const ReadFlags& flags) {
  v1::ReadRecordingRequest request;
  request.set_name(flags.name);
  RETURN_IF_ERROR(
      FillHookPoints(flags, request.mutable_hook_points(), request.mutable_max_activations_by_hook_point()));
  request.set_first_row(flags.first_row);
  request.set_row_count(flags.row_count);
  if (flags.max_activations.has_value()) request.set_max_activations(*flags.max_activations);
  if (flags.shuffle_seed.has_value()) request.set_shuffle_seed(*flags.shuffle_seed);
  request.set_provenance(flags.provenance);
  return request;
}

FileFormat FormatOf(const std::string& name) {
  return name == "pt" ? FileFormat::kPt : name == "npy" ? FileFormat::kNpy : FileFormat::kSafetensors;
}

absl::Status Run(const ReadFlags& flags, const std::string& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(v1::ReadRecordingRequest request, MakeRequest(flags));
  if (std::error_code error;
      flags.manifest && !flags.overwrite && std::filesystem::exists(ExportManifestPath(flags.out), error)) {
    return absl::AlreadyExistsError(
        absl::StrCat(ExportManifestPath(flags.out), " exists; choose another --out, or give --overwrite"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Connect(server));
  Transfer transfer;
  transfer.start_call = [&](const std::string& resume_token) {
    v1::ReadRecordingRequest resumed = request;
    resumed.set_resume_token(resume_token);
    return std::make_unique<client::CaptureCall>(client->connection(), client::kReadRecordingMethod,
                                                 resumed.SerializeAsString(), /*streams_tokens=*/false);
  };
  transfer.format = FormatOf(flags.format);
  transfer.on_started = [](const v1::CaptureStarted& started, Progress& progress) {
    // A recording grants no more rows than it has.
    int64_t total = 0;
    for (const v1::HookPointGrant& grant : started.hook_points()) total += grant.max_activations();
    progress.SetTotal(total);
  };
  if (flags.manifest) {
    transfer.on_finished = [&](const CaptureResult& result, const RowFiles& files) {
      return WriteExportManifest(flags.out, flags.name, result, files);
    };
  }
  transfer.table = ReadTable;
  return RunTransfer(flags, transfer, server, interrupt);
}

void AddSharedOptions(CLI::App& command, ReadFlags& flags) {
  command.add_option("name", flags.name, "The recording")->type_name("NAME")->required();
  command
      .add_option("--hook-points", flags.hook_points,
                  "Names and wildcards among those recorded, separated by commas. Repeatable. Default: all")
      ->type_name("NAMES")
      ->allow_extra_args(false);
  command.add_option("--first-row", flags.first_row, "The first row to take [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--row-count", flags.row_count, "How many rows; 0: all that follow [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--overwrite", flags.overwrite, "Replace files that are there");
  command.add_flag("--json", flags.json, "Print what came as JSON");
  command.add_flag("--quiet,-q", flags.quiet, "No progress");
}

}  // namespace

void AddReadCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("read", "Reads rows of a recording into safetensors files");
  command->footer(kReadFooter);
  auto flags = std::make_shared<ReadFlags>();
  AddServerOption(*command, invocation);
  AddSharedOptions(*command, *flags);
  command->add_option("--max-activations", flags->max_activations, "The most rows of each hook point")
      ->type_name("ROWS");
  command
      ->add_option("--max-activations-for", flags->max_activations_for, "Another number for one hook point. Repeatable")
      ->type_name("NAME=ROWS")
      ->allow_extra_args(false);
  command->add_option("--shuffle-seed", flags->shuffle_seed, "Rows in an order that this number decides")
      ->type_name("N");
  CLI::Option* out =
      command->add_option("--out", flags->out, "Directory for the files. Without it rows are only counted")
          ->type_name("DIR");
  command->add_flag("--provenance", flags->provenance, "Also write where each row comes from")->needs(out);
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

void AddExportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("export", "Writes a recording as one .pt, .npy or .safetensors per hook point");
  command->footer(kExportFooter);
  auto flags = std::make_shared<ReadFlags>();
  flags->manifest = true;
  AddServerOption(*command, invocation);
  AddSharedOptions(*command, *flags);
  command->add_option("--format", flags->format, "What the files are")
      ->check(CLI::IsMember({"pt", "npy", "safetensors"}))
      ->required();
  command->add_option("--out", flags->out, "Directory for the files")->type_name("DIR")->required();
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
