// Writes a capture's rows to disk while they arrive: one file for each hook point, safetensors, .npy or .pt.
//
// A safetensors file holds one tensor [rows, width] under the hook point's exact name, and with provenance
// `provenance/sequence` and `provenance/token_id` (I64) and `provenance/position` (I32), each [rows]. Its metadata:
// `format` = "hookline-capture", `version` = "1", `hook_point`, `model`, `fingerprint`, and `stop_reason`. Rows with a
// scale or with top_k are U8 [rows, bytes of a row], in the form of ActivationChunk.data, and the metadata also has
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

// Returns the file names of hook points, in order. Characters other than A-Z a-z 0-9 . _ - become _; in names of .pt
// files dots do too, as in those of the original collector. The names differ even if case is ignored, and none is
// hidden or too long for a file system.
std::vector<std::string> FileNames(const std::vector<std::string>& hook_points,
                                   FileFormat format = FileFormat::kSafetensors);

struct RowFilesOptions {
  FileFormat format = FileFormat::kSafetensors;
  bool provenance = false;  // only for safetensors
  IfExists if_exists = IfExists::kRefuse;
};

// Until Finish, the directory holds at most temporary files, whose names begin with a dot; without Finish, the
// destructor removes them. One thread at a time may use it.
class RowFiles {
 public:
  // Creates `directory` if it does not exist. ALREADY_EXISTS names a file that is in the way; INVALID_ARGUMENT means
  // that the format cannot hold the rows; disk errors name the path.
  static absl::StatusOr<std::unique_ptr<RowFiles>> Create(const std::string& directory,
                                                          const v1::CaptureStarted& started,
                                                          const RowFilesOptions& options);
  ~RowFiles();
  RowFiles(const RowFiles&) = delete;
  RowFiles& operator=(const RowFiles&) = delete;

  // Appends a chunk's rows to the earlier rows of the same hook point.
  absl::Status Append(const client::Chunk& chunk);

  // Completes the files, syncs them to the disk and gives them their names.
  absl::Status Finish(v1::StopReason stop_reason);

  // The path of the file that holds the rows of a hook point after Finish.
  std::string path(int hook_point) const;
  // The file's name, without the directory.
  const std::string& name(int hook_point) const;

 private:
  struct File;

  RowFiles(std::string directory, const v1::CaptureStarted& started, const RowFilesOptions& options);

  int64_t ReservedBytes(const File& file) const;
  // Returns a safetensors header, padded to the bytes reserved for it.
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
