// Runs the transfer of every command that receives rows: shows progress, writes a file for each hook point if a
// directory was given, and prints a report at the end.
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
  // Calls RunCapture or RunSharedCapture.
  std::function<absl::StatusOr<CaptureResult>(const CaptureHandlers& handlers, Progress& progress,
                                              Interrupt& interrupt)>
      run;
  FileFormat format = FileFormat::kSafetensors;
  // Sets the total of `progress`, if it is known, and prints notes. Runs before any row comes.
  std::function<void(const v1::CaptureStarted& started, Progress& progress)> on_started;
  // Runs once the files have their names. May be empty.
  std::function<absl::Status(const CaptureResult& result, const RowFiles& files)> on_finished;
  // Returns notes on a transfer that succeeded, which standard error shows after the report. May be empty.
  std::function<std::vector<std::string>(const CaptureResult& result)> notes;
  // Makes the report: CaptureTable, ReadTable or StatisticsTable.
  std::string (*table)(const CaptureResult& result, absl::Duration elapsed, const std::vector<std::string>& paths);
};

// Runs the transfer. Returns the errors of `run`, of `on_finished` and of RowFiles, explained by ExplainUnavailable. A
// transfer that fails or is interrupted leaves no file.
absl::Status RunTransfer(const TransferFlags& flags, const Transfer& transfer, const std::string& server,
                         Interrupt& interrupt);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TRANSFER_H_
