// The manifest of a recording; see FORMAT.md.
#ifndef HOOKLINE_SERVER_RECORDING_MANIFEST_H_
#define HOOKLINE_SERVER_RECORDING_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "server/base/file_system.h"
#include "server/base/row_layout.h"

namespace hookline {

inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kTemporarySuffix[] = ".tmp";
// The shards' names number rows with 12 digits.
inline constexpr int64_t kMaxRecordedRows = 999'999'999'999;

enum class RecordingState { kRunning, kComplete, kStopped, kInterrupted, kFailed };
inline constexpr RecordingState kRecordingStates[] = {RecordingState::kRunning, RecordingState::kComplete,
                                                      RecordingState::kStopped, RecordingState::kInterrupted,
                                                      RecordingState::kFailed};

// Returns `RUNNING`, `COMPLETE`, ...
absl::string_view RecordingStateName(RecordingState state);

// A tensor of activations that a recording holds.
struct RecordedHookPoint {
  std::string name;
  int64_t width = 0;
  int64_t max_activations = 0;  // the budget granted, in rows
};

// One file of a recording.
struct ShardInfo {
  std::string file;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t bytes = 0;
  std::string xxh3;  // 32 hexadecimal digits
  // The `first_row` in the file's header; in a merged recording, the one in the part that the file was written for.
  int64_t header_first_row = 0;

  int64_t end_row() const { return first_row + rows; }
};

struct Manifest {
  std::string name;
  RecordingState state = RecordingState::kRunning;
  std::string error;
  std::string model;
  std::string fingerprint;
  std::string request_digest;
  std::string client;  // the client that owns the recording; empty: nobody
  bool deterministic = false;
  bool merged = false;  // made of the shards of other recordings: no writer continues it
  Dtype dtype = Dtype::kFloat32;
  int64_t top_k = 0;  // 0: whole rows
  std::vector<RecordedHookPoint> hook_points;
  int64_t shard_rows = 0;  // rows of each shard but the last; in a merged recording, the most of any shard
  nlohmann::json source = nlohmann::json::object();
  nlohmann::json selection = nlohmann::json::object();
  std::vector<ShardInfo> shards;
  std::string resume_token;  // continues the capture after resume_row, which is at most rows()
  int64_t resume_row = 0;
  int64_t resume_message_bytes = 0;  // the capture's max_message_bytes, which its tokens are bound to
  absl::Time create_time;
  absl::Time update_time;

  int64_t rows() const { return shards.empty() ? 0 : shards.back().end_row(); }
  int64_t RowsOf(int hook_point) const;
  // Returns the index of the shard that holds row `row`, which is below rows().
  size_t ShardOf(int64_t row) const;
  RowLayout LayoutOf(int hook_point) const { return {dtype, hook_points[hook_point].width, top_k}; }
  int64_t bytes() const;
  // Returns the largest budget.
  int64_t max_rows() const;
};

// Returns INVALID_ARGUMENT unless `name` matches [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
absl::Status CheckRecordingName(absl::string_view name);

// Returns `rows-FIRST-END.safetensors`.
std::string ShardFileName(int64_t first_row, int64_t end_row);

// Returns whether `name` has the form of a shard's name or of a temporary file's, which a sweep may remove.
bool IsLeftover(absl::string_view name);

std::string FormatManifest(const Manifest& manifest);

// Returns DATA_LOSS, naming the member, for anything that FORMAT.md does not allow.
absl::StatusOr<Manifest> ParseManifest(absl::string_view json);

// Reads the manifest in `directory`. NOT_FOUND: there is none; other errors are those of ParseManifest, with the path.
absl::StatusOr<Manifest> ReadManifest(Directory& directory);

// Replaces the manifest as FORMAT.md requires. After an error the manifest is either the old one or this one.
absl::Status WriteManifest(Directory& directory, const Manifest& manifest);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_MANIFEST_H_
