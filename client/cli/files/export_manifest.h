// `manifest.json` beside the files of an export, which gives the exact name of the hook point in each file.
#ifndef HOOKLINE_CLIENT_CLI_FILES_EXPORT_MANIFEST_H_
#define HOOKLINE_CLIENT_CLI_FILES_EXPORT_MANIFEST_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/capture_result.h"
#include "client/cli/files/row_files.h"

namespace hookline::cli {

std::string ExportManifestPath(const std::string& directory);

// Writes the manifest. It appears under its name only when it is complete, and replaces an older one.
absl::Status WriteExportManifest(const std::string& directory, const std::string& recording,
                                 const CaptureResult& result, const RowFiles& files);

// Returns the hook points' names by file name; empty if there is no manifest. FAILED_PRECONDITION if the file is not
// the manifest of an export.
absl::StatusOr<std::map<std::string, std::string>> ReadExportManifest(const std::string& directory);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_EXPORT_MANIFEST_H_
