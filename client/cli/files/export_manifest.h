// `manifest.json` beside the files of an export: which hook point, by its exact name, is in which file.
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

// Appears when it is whole, in place of what is there.
absl::Status WriteExportManifest(const std::string& directory, const std::string& recording,
                                 const CaptureResult& result, const RowFiles& files);

// Names of hook points by file name. Empty where there is no manifest; FAILED_PRECONDITION: one that is no export's.
absl::StatusOr<std::map<std::string, std::string>> ReadExportManifest(const std::string& directory);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_EXPORT_MANIFEST_H_
