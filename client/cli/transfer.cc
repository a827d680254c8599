#include "client/cli/transfer.h"

#include <cstdio>
#include <memory>

#include "client/cli/exit_code.h"
#include "client/cli/terminal/report.h"
#include "server/base/status.h"

namespace hookline::cli {

absl::Status RunTransfer(const TransferFlags& flags, const Transfer& transfer, const std::string& server,
                         Interrupt& interrupt) {
  // While files are being written, a signal must not end the program before their temporary names are removed.
  Interrupt::Listener keep_running(&interrupt, [] {});
  std::unique_ptr<RowFiles> files;
  absl::StatusOr<CaptureResult> result;
  absl::Duration elapsed;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle());
    CaptureHandlers handlers;
    handlers.on_started = [&](const v1::CaptureStarted& started) -> absl::Status {
      if (!flags.out.empty()) {
        ASSIGN_OR_RETURN(files, RowFiles::Create(flags.out, started,
                                                 {transfer.format, flags.provenance,
                                                  flags.overwrite ? IfExists::kReplace : IfExists::kRefuse}));
      }
      transfer.on_started(started, progress);
      return absl::OkStatus();
    };
    handlers.on_chunk = [&](const client::Chunk& chunk) {
      return files == nullptr ? absl::OkStatus() : files->Append(chunk);
    };
    result = transfer.run(handlers, progress, interrupt);
    if (result.ok() && files != nullptr) {
      absl::Status status = files->Finish(result->summary.stop_reason());
      if (status.ok() && transfer.on_finished) status = transfer.on_finished(*result, *files);
      if (!status.ok()) result = status;
    }
    elapsed = progress.elapsed();
  }
  if (!result.ok()) return ExplainUnavailable(result.status(), server);

  std::vector<std::string> paths;
  for (int i = 0; files != nullptr && i < result->started.hook_points_size(); ++i) paths.push_back(files->path(i));
  const std::string report =
      flags.json ? CaptureJson(*result, elapsed, paths) : transfer.table(*result, elapsed, paths);
  std::fputs(report.c_str(), stdout);
  if (transfer.notes) {
    for (const std::string& note : transfer.notes(*result)) std::fprintf(stderr, "hookline: %s\n", note.c_str());
  }
  return absl::OkStatus();
}

}  // namespace hookline::cli
