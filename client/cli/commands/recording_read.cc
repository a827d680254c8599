#include "client/cli/commands/recording_read.h"

#include <memory>
#include <string>

#include "client/cli/terminal/report.h"
#include "hookline/v1/recording_service.pb.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

absl::StatusOr<v1::ReadRecordingRequest> MakeRequest(const RecordingReadFlags& flags) {
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

}  // namespace

void AddRecordingReadOptions(CLI::App& command, RecordingReadFlags& flags) {
  command.add_option("name", flags.name, "The recording")->type_name("NAME")->required();
  command
      .add_option("--hook-points", flags.hook_points,
                  "Names and wildcards among those recorded, separated by commas. Repeatable. Default: all")
      ->type_name("NAMES")
      ->allow_extra_args(false);
  command.add_option("--first-row", flags.first_row, "The first row to take [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--row-count", flags.row_count, "Number of rows; 0: all that follow [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--overwrite", flags.overwrite, "Replace existing files");
  command.add_flag("--json", flags.json, "Print the report as JSON");
  command.add_flag("--quiet,-q", flags.quiet, "Show no progress");
}

absl::StatusOr<Transfer> MakeRecordingRead(const RecordingReadFlags& flags, client::Client& client) {
  ASSIGN_OR_RETURN(v1::ReadRecordingRequest request, MakeRequest(flags));
  Transfer transfer;
  const auto start_call = [request, &client](const std::string& resume_token) {
    v1::ReadRecordingRequest resumed = request;
    resumed.set_resume_token(resume_token);
    return std::make_unique<client::CaptureCall>(client.connection(), client::kReadRecordingMethod,
                                                 resumed.SerializeAsString(), /*streams_tokens=*/false);
  };
  transfer.run = [start_call](const CaptureHandlers& handlers, Progress& progress, Interrupt& interrupt) {
    return RunCapture(start_call, /*tokens=*/nullptr, handlers, progress, interrupt);
  };
  transfer.on_started = [](const v1::CaptureStarted& started, Progress& progress) {
    // A recording grants no more rows than it has.
    int64_t total = 0;
    for (const v1::HookPointGrant& grant : started.hook_points()) total += grant.max_activations();
    progress.SetTotal(total);
  };
  transfer.table = ReadTable;
  return transfer;
}

}  // namespace hookline::cli
