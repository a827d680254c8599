#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/files/export_manifest.h"
#include "client/cli/files/pt_file.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/report.h"
#include "server/base/escape.h"
#include "server/base/file_system.h"
#include "server/base/status.h"
#include "server/recording/catalog.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(Reads the files that the original collector's save_activations, `hookline export --format pt` or the Python
client wrote. Each holds one tensor of (rows, width); all have the same dtype. A hook point's name comes from the
export's manifest.json, else from the file's contents, else from the file's name (blocks_3_hook_mlp_out.pt). No server
may use the --recordings-dir meanwhile; a server that starts on it later serves the recording.

Such files do not record which token each row belongs to, so the provenance is sequence -1, position -1, token id 0.

Example:
  hookline import activations/ --recordings-dir /data/recordings --name old-run)";

// The rows of one hook point that are written before those of the next.
constexpr int64_t kGroupRows = 512;
// A server takes this many hook points in one request by default. Each keeps a file open here.
constexpr size_t kMaxFiles = 4096;

struct ImportFlags {
  std::string folder;
  std::string recordings;
  std::string name;
  std::string model;
  std::string fingerprint;
  bool quiet = false;
};

absl::StatusOr<std::vector<std::string>> PtPathsOf(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() != ".pt") continue;
    if (paths.size() == kMaxFiles) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": more than ", kMaxFiles, " .pt files"));
    }
    paths.push_back(entry->path().string());
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot list ", folder));
  if (paths.empty()) return absl::NotFoundError(absl::StrCat(folder, ": has no .pt files"));
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::StatusOr<std::vector<PtFile>> ReadFolder(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> paths, PtPathsOf(folder));
  ASSIGN_OR_RETURN(const auto names_by_file, ReadExportManifest(folder));
  std::vector<PtFile> files;
  std::set<std::string> names;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(PtFile file, ReadPtFile(path));
    const auto named = names_by_file.find(std::filesystem::path(path).filename().string());
    if (named != names_by_file.end()) file.hook_point = named->second;
    if (!names.insert(file.hook_point).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": another file also holds ", file.hook_point));
    }
    if (!files.empty() && file.dtype != files[0].dtype) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": its values are ", DtypeName(file.dtype), ", those of ",
                                                     paths[0], " are ", DtypeName(files[0].dtype),
                                                     "; a recording has one dtype"));
    }
    files.push_back(std::move(file));
  }
  return files;
}

absl::Status Write(const std::vector<PtFile>& files, RecordingWriter& writer, Progress& progress,
                   const Interrupt& interrupt) {
  const std::vector<int64_t> sequence(kGroupRows, -1);
  const std::vector<int32_t> position(kGroupRows, -1);
  const std::vector<uint32_t> token_id(kGroupRows, 0);
  std::vector<uint8_t> buffer;
  int64_t end = 0;
  for (const PtFile& file : files) end = std::max(end, file.rows);
  for (int64_t first = 0; first < end; first += kGroupRows) {
    const int64_t group = std::min(kGroupRows, end - first);
    for (size_t h = 0; h < files.size(); ++h) {
      const int64_t rows = std::min(group, files[h].rows - first);
      if (rows <= 0) continue;
      const int64_t row_bytes = files[h].row_bytes();
      buffer.resize(static_cast<size_t>(rows * row_bytes));
      RETURN_IF_ERROR(files[h].ReadRows(first, absl::MakeSpan(buffer)));
      const absl::Span<const uint8_t> values = buffer;
      RowsToRecord to_record;
      to_record.hook_point = static_cast<int>(h);
      to_record.first_row = first;
      to_record.rows = rows;
      to_record.data = absl::MakeConstSpan(&values, 1);
      to_record.sequence = absl::MakeConstSpan(sequence).first(static_cast<size_t>(group));
      to_record.position = absl::MakeConstSpan(position).first(static_cast<size_t>(group));
      to_record.token_id = absl::MakeConstSpan(token_id).first(static_cast<size_t>(group));
      RETURN_IF_ERROR(writer.Append(to_record));
      progress.Add(rows, rows * row_bytes);
    }
    if (interrupt.came()) return absl::CancelledError("interrupted");
  }
  for (const PtFile& file : files) RETURN_IF_ERROR(file.file->CheckUnchanged());
  return absl::OkStatus();
}

absl::Status Run(const ImportFlags& flags, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const std::vector<PtFile> files, ReadFolder(flags.folder));
  absl::StatusOr<std::unique_ptr<Directory>> directory = OpenDirectory(flags.recordings);
  if (!directory.ok()) {
    return absl::Status(directory.status().code(), absl::StrCat("--recordings-dir: ", directory.status().message()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Catalog> catalog, Catalog::Open(*std::move(directory), {}));
  Manifest manifest;
  manifest.name = flags.name;
  manifest.model = flags.model;
  manifest.fingerprint = flags.fingerprint;
  manifest.dtype = files[0].dtype;
  manifest.source = {{"tokens", {{"sequences", 0}}}};
  int64_t total = 0;
  for (const PtFile& file : files) {
    manifest.hook_points.push_back({file.hook_point, file.width, file.rows});
    total += file.rows;
  }
  Interrupt::Listener keep_running(&interrupt, [] {});
  ASSIGN_OR_RETURN(std::unique_ptr<RecordingWriter> writer, catalog->Create(std::move(manifest)));
  absl::Status status;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle());
    progress.SetTotal(total);
    status = Write(files, *writer, progress, interrupt);
    if (status.ok()) status = writer->Close(RecordingState::kComplete, absl::OkStatus());
  }
  if (!status.ok()) {
    writer->Close(RecordingState::kFailed, status).IgnoreError();
    writer.reset();
    catalog->Delete(flags.name).status().IgnoreError();  // it cannot be continued
    return absl::IsCancelled(status) ? absl::CancelledError("interrupted; nothing was kept") : status;
  }
  std::fputs(absl::StrCat(Escaped(flags.name), ": ", Count(static_cast<int64_t>(files.size()), "hook point"), ", ",
                          Count(writer->manifest().rows(), "row"), " in ",
                          Count(static_cast<int64_t>(writer->manifest().shards.size()), "shard"), "\n")
                 .c_str(),
             stdout);
  return absl::OkStatus();
}

}  // namespace

void AddImportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("import", "Makes a recording from a directory of .pt files, without a server");
  command->footer(kFooter);
  auto flags = std::make_shared<ImportFlags>();
  command->add_option("folder", flags->folder, "The directory of .pt files")->type_name("DIR")->required();
  command->add_option("--recordings-dir", flags->recordings, "The directory of recordings that a server will serve")
      ->type_name("DIR")
      ->required();
  command->add_option("--name", flags->name, "The recording's name: letters, digits, and . _ -")
      ->type_name("NAME")
      ->required();
  command->add_option("--model", flags->model, "The model's name, for readers of the recording")->type_name("NAME");
  command->add_option("--fingerprint", flags->fingerprint, "The fingerprint of the model's weights")->type_name("HEX");
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress");
  command->callback(
      [flags, &invocation] { invocation.run = [flags, &invocation] { return Run(*flags, *invocation.interrupt); }; });
}

}  // namespace hookline::cli
