// Shared by the commands that bring rows: progress while they come, a file for each hook point where a directory was
// given, and a report at the end.
#ifndef HOOKLINE_CLIENT_CLI_TRANSFER_H_
#define HOOKLINE_CLIENT_CLI_TRANSFER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/capture_run.h"
#include "client/cli/files/row_files.h"
#include "client/cli/interrupt.h"

namespace hookline::cli {

struct TransferFlags {
  std::string out;  // empty: no files
  bool provenance = false;
  bool overwrite = false;
  bool json = false;
  bool quiet = false;
};

struct Transfer {
  // RunCapture or RunSharedCapture.
  std::function<absl::StatusOr<CaptureResult>(const CaptureHandlers& handlers, Progress& progress,
                                              Interrupt& interrupt)>
      run;
  FileFormat format = FileFormat::kSafetensors;
  // Tells the progress how much there will be. Before any row.
  std::function<void(const v1::CaptureStarted& started, Progress& progress)> on_started;
  // Runs once the files have their names. May be empty.
  std::function<absl::Status(const CaptureResult& result, const RowFiles& files)> on_finished;
  // Notes about a transfer that ended well, shown beside the report and also where that is left out. May be empty.
  std::function<std::vector<std::string>(const CaptureResult& result)> notes;
  // CaptureTable or ReadTable.
  std::string (*table)(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);
};

// Errors of `run` and of RowFiles; where there is no server, what to do about it. A transfer that fails or is
// interrupted leaves no file.
absl::Status RunTransfer(const TransferFlags& flags, const Transfer& transfer, const std::string& server,
                         Interrupt& interrupt);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TRANSFER_H_
