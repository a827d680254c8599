// Writes a capture's rows to disk while they arrive: one file for each hook point, safetensors, .npy or .pt.
//
// A safetensors file holds one tensor [rows, width] under the hook point's exact name, and with provenance
// `provenance/sequence` and `provenance/token_id` (I64) and `provenance/position` (I32), each [rows]. Its metadata:
// `format` = "hookline-capture", `version` = "1", `hook_point`, `model`, `fingerprint`, and `stop_reason`. Rows with a
// scale or with top_k are U8 [rows, bytes of a row], as ActivationChunk.data has them, and the metadata also says
// `dtype`, `width` and `top_k`.
#ifndef HOOKLINE_CLIENT_CLI_FILES_ROW_FILES_H_
#define HOOKLINE_CLIENT_CLI_FILES_ROW_FILES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/files/scratch_file.h"
#include "client/cpp/capture_response.h"

namespace hookline::cli {

enum class IfExists { kRefuse, kReplace };
enum class FileFormat { kSafetensors, kNpy, kPt };

// The file names for hook points, in order: their characters beside A-Z a-z 0-9 . _ - replaced by _, made different
// from each other also where case does not count, and none hidden or too long for a file system. In names of .pt files
// dots are replaced too, as the original collector does.
std::vector<std::string> FileNames(const std::vector<std::string>& hook_points,
                                   FileFormat format = FileFormat::kSafetensors);

struct RowFilesOptions {
  FileFormat format = FileFormat::kSafetensors;
  bool provenance = false;  // of safetensors only
  IfExists if_exists = IfExists::kRefuse;
};

// Until Finish the directory holds temporary files only, whose names begin with a dot; destroying it without Finish
// removes them. One thread at a time.
class RowFiles {
 public:
  // Makes `directory` where there is none. ALREADY_EXISTS names a file that is in the way; INVALID_ARGUMENT: the format
  // has no such dtype; errors of the disk name the path.
  static absl::StatusOr<std::unique_ptr<RowFiles>> Create(const std::string& directory,
                                                          const v1::CaptureStarted& started,
                                                          const RowFilesOptions& options);
  ~RowFiles();
  RowFiles(const RowFiles&) = delete;
  RowFiles& operator=(const RowFiles&) = delete;

  // Appends a chunk's rows. They follow those given before of that hook point.
  absl::Status Append(const client::Chunk& chunk);

  // Completes the files, brings them to the disk and gives them their names.
  absl::Status Finish(v1::StopReason stop_reason);

  // The file that holds the rows of a hook point after Finish.
  std::string path(int hook_point) const;
  // The file's name, without the directory.
  const std::string& name(int hook_point) const;

 private:
  struct File;

  RowFiles(std::string directory, const v1::CaptureStarted& started, const RowFilesOptions& options);

  int64_t ReservedBytes(const File& file) const;
  // A safetensors header, as long as what was reserved for it.
  std::string Header(const File& file, int64_t rows, v1::StopReason stop_reason) const;
  absl::Status AppendProvenance(const v1::ActivationChunk& header);
  absl::Status Complete(File& file, v1::StopReason stop_reason);

  const std::string directory_;
  const v1::CaptureStarted started_;
  const FileFormat format_;
  const bool provenance_;
  std::vector<std::unique_ptr<File>> files_;
  // Hook points are row-aligned, so one copy of each column serves all files.
  int64_t provenance_rows_ = 0;
  std::unique_ptr<ScratchFile> sequence_;
  std::unique_ptr<ScratchFile> token_id_;
  std::unique_ptr<ScratchFile> position_;
};

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_ROW_FILES_H_
