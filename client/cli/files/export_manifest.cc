#include "client/cli/files/export_manifest.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/files/scratch_file.h"
#include "client/cli/terminal/text_format.h"
#include "nlohmann/json.hpp"
#include "server/base/input_file.h"
#include "server/base/json.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFileName[] = "manifest.json";
constexpr char kFormat[] = "hookline-export";
// Twice the size of a manifest of 4096 hook points with names of 255 bytes.
constexpr size_t kMaxBytes = size_t{4} << 20;
// The manifests of `hookline export` use three levels.
constexpr int kMaxDepth = 8;

}  // namespace

std::string ExportManifestPath(const std::string& directory) { return absl::StrCat(directory, "/", kFileName); }

absl::Status WriteExportManifest(const std::string& directory, const std::string& recording,
                                 const CaptureResult& result, const RowFiles& files) {
  nlohmann::ordered_json entries = nlohmann::ordered_json::object();
  for (int i = 0; i < result.started.hook_points_size(); ++i) {
    entries[files.name(i)] = {{"hook_point", result.started.hook_points(i).hook_point()},
                              {"rows", result.summary.hook_points(i).rows()},
                              {"width", result.started.hook_points(i).width()}};
  }
  const nlohmann::ordered_json manifest = {{"format", kFormat},
                                           {"version", 1},
                                           {"recording", recording},
                                           {"model", result.started.model()},
                                           {"fingerprint", result.started.fingerprint()},
                                           {"dtype", DtypeName(result.started.dtype())},
                                           {"files", std::move(entries)}};
  const std::string text = manifest.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  ASSIGN_OR_RETURN(std::unique_ptr<ScratchFile> file, ScratchFile::Create(TemporaryPath(directory, kFileName)));
  RETURN_IF_ERROR(file->Append(text.data(), static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(file->Sync());
  RETURN_IF_ERROR(file->Keep(ExportManifestPath(directory)));
  return SyncDirectory(directory);
}

absl::StatusOr<std::map<std::string, std::string>> ReadExportManifest(const std::string& directory) {
  std::map<std::string, std::string> names;
  const std::string path = ExportManifestPath(directory);
  const absl::StatusOr<std::string> text = ReadWholeFile(path, kMaxBytes);
  if (absl::IsNotFound(text.status())) return names;
  RETURN_IF_ERROR(text.status());
  const auto wrong = [&](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": ", what, "; it must be a manifest that hookline export wrote, or be absent"));
  };
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(*text, kMaxDepth);
  if (!json.ok()) return wrong(json.status().message());
  if (json->value("format", nlohmann::json()) != kFormat) return wrong("has another format");
  const auto files = json->find("files");
  if (files == json->end() || !files->is_object()) return wrong("has no `files`");
  for (const auto& [name, entry] : files->items()) {
    if (!entry.is_object() || !entry.value("hook_point", nlohmann::json()).is_string()) {
      return wrong(absl::StrCat("files: ", name, ": has no `hook_point`"));
    }
    names[name] = entry["hook_point"].get<std::string>();
  }
  return names;
}

}  // namespace hookline::cli
