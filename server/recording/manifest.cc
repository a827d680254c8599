#include "server/recording/manifest.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/json.h"
#include "server/base/name.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
// Merged recordings have a version of their own, since readers of version 1 would misread them.
constexpr int kMergedVersion = 2;
// A recording of 10 TiB in shards of 256 MiB has a manifest of 8 MiB; anything larger was not written by Hookline.
constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;
// Manifests use four levels.
constexpr int kMaxManifestDepth = 16;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
// No disk holds this much, and sums over recordings stay far below the end of int64_t.
constexpr int64_t kMaxBytes = int64_t{1} << 60;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat8E4M3, Dtype::kInt8};

// Reads members of a JSON object and remembers the first error.
class Members {
 public:
  Members(const nlohmann::json& object, std::string path, absl::Status& status)
      : object_(object), path_(std::move(path)), status_(status) {
    if (!object.is_object()) Fail("", "an object");
  }

  std::string String(const char* key, size_t max_bytes) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr || !value->is_string() || value->get_ref<const std::string&>().size() > max_bytes) {
      Fail(key, absl::StrCat("a string of at most ", max_bytes, " bytes"));
      return "";
    }
    return value->get<std::string>();
  }

  int64_t Integer(const char* key, int64_t least, int64_t most) {
    const nlohmann::json* value = Find(key);
    const std::optional<int64_t> number = value == nullptr ? std::nullopt : JsonInteger(*value, least, most);
    if (!number.has_value()) Fail(key, absl::StrCat("an integer from ", least, " to ", most));
    return number.value_or(least);
  }

  bool Boolean(const char* key) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr || !value->is_boolean()) {
      Fail(key, "true or false");
      return false;
    }
    return value->get<bool>();
  }

  nlohmann::json Object(const char* key) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr || !value->is_object()) {
      Fail(key, "an object");
      return nlohmann::json::object();
    }
    return *value;
  }

  nlohmann::json Array(const char* key) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr || !value->is_array()) {
      Fail(key, "an array");
      return nlohmann::json::array();
    }
    return *value;
  }

  void Fail(absl::string_view key, absl::string_view wanted) {
    if (!status_.ok()) return;
    status_ = absl::DataLossError(absl::StrCat(path_, path_.empty() || key.empty() ? "" : ".", key, ": not ", wanted));
  }

 private:
  const nlohmann::json* Find(const char* key) const {
    if (!object_.is_object()) return nullptr;
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }

  const nlohmann::json& object_;
  const std::string path_;
  absl::Status& status_;
};

absl::Status CheckShards(const Manifest& manifest) {
  int64_t row = 0;
  for (size_t i = 0; i < manifest.shards.size(); ++i) {
    const ShardInfo& shard = manifest.shards[i];
    const bool may_be_short = manifest.merged || i + 1 == manifest.shards.size();
    if (shard.first_row != row || shard.rows > manifest.shard_rows ||
        (!may_be_short && shard.rows != manifest.shard_rows) || shard.end_row() > manifest.max_rows()) {
      return absl::DataLossError(absl::StrCat("shards[", i, "]: rows ", shard.first_row, " to ", shard.end_row(),
                                              " do not follow row ", row, " in shards of ", manifest.shard_rows,
                                              " rows up to ", manifest.max_rows()));
    }
    if (shard.file != ShardFileName(shard.first_row, shard.end_row())) {
      return absl::DataLossError(absl::StrCat("shards[", i, "].file: not the name of its rows"));
    }
    row = shard.end_row();
  }
  return absl::OkStatus();
}

// Checks that each shard and all of them together have possible file sizes, which later sums rely on.
absl::Status CheckSizes(const Manifest& manifest) {
  CheckedInt64 row_bytes = 8 + 8 + 4;  // the provenance
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    row_bytes += manifest.LayoutOf(static_cast<int>(i)).bytes();  // its width is at most kMaxWidth
  }
  const std::optional<int64_t> shard_bytes = (row_bytes * std::min(manifest.shard_rows, manifest.max_rows())).value();
  if (!shard_bytes.has_value() || *shard_bytes > kMaxBytes) {
    return absl::DataLossError(absl::StrCat("shard_rows: ", manifest.shard_rows,
                                            " rows of all hook points take more than ", kMaxBytes, " bytes"));
  }
  CheckedInt64 bytes = 0;
  for (const ShardInfo& shard : manifest.shards) bytes += shard.bytes;
  if (!bytes.value().has_value() || *bytes.value() > kMaxBytes) {
    return absl::DataLossError(absl::StrCat("shards: take more than ", kMaxBytes, " bytes"));
  }
  return absl::OkStatus();
}

void ReadState(Members& members, Manifest& manifest) {
  const std::string state = members.String("state", 32);
  const auto found_state = std::find_if(std::begin(kRecordingStates), std::end(kRecordingStates),
                                        [&](RecordingState s) { return RecordingStateName(s) == state; });
  if (found_state == std::end(kRecordingStates)) {
    members.Fail("state", "RUNNING, COMPLETE, STOPPED, INTERRUPTED or FAILED");
  } else {
    manifest.state = *found_state;
  }
}

void ReadDtype(Members& members, Manifest& manifest) {
  const std::string dtype = members.String("dtype", 32);
  const auto found_dtype =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](Dtype d) { return DtypeName(d) == dtype; });
  if (found_dtype == std::end(kDtypes)) {
    members.Fail("dtype", "float32, bfloat16, float16, float8_e4m3 or int8");
  } else {
    manifest.dtype = *found_dtype;
  }
}

void ReadHookPoints(Members& members, absl::Status& status, Manifest& manifest) {
  const nlohmann::json hook_points = members.Array("hook_points");
  if (hook_points.empty()) members.Fail("hook_points", "at least one");
  std::set<std::string> names;
  for (size_t i = 0; i < hook_points.size(); ++i) {
    Members point(hook_points[i], absl::StrCat("hook_points[", i, "]"), status);
    RecordedHookPoint read;
    read.name = point.String("name", 1 << 12);
    read.width = point.Integer("width", 1, kMaxWidth);
    read.max_activations = point.Integer("max_activations", 1, kMaxRecordedRows);
    if (!names.insert(read.name).second) point.Fail("name", "unique");
    if (read.width < manifest.top_k) point.Fail("width", "at least top_k");
    manifest.hook_points.push_back(std::move(read));
  }
}

void ReadShards(Members& members, absl::Status& status, Manifest& manifest) {
  const nlohmann::json shards = members.Array("shards");
  for (size_t i = 0; i < shards.size(); ++i) {
    Members shard(shards[i], absl::StrCat("shards[", i, "]"), status);
    ShardInfo read;
    read.file = shard.String("file", 255);
    read.first_row = shard.Integer("first_row", 0, kMaxRecordedRows);
    read.rows = shard.Integer("rows", 1, kMaxRecordedRows);
    read.bytes = shard.Integer("bytes", 1, kMaxBytes);
    read.xxh3 = shard.String("xxh3", 32);
    read.header_first_row = read.first_row;
    if (manifest.merged) read.header_first_row = shard.Integer("header_first_row", 0, kMaxRecordedRows);
    manifest.shards.push_back(std::move(read));
  }
}

void ReadResume(Members& members, absl::Status& status, Manifest& manifest) {
  const nlohmann::json resume = members.Object("resume");
  Members resume_members(resume, "resume", status);
  if (!absl::Base64Unescape(resume_members.String("token", 1 << 20), &manifest.resume_token)) {
    resume_members.Fail("token", "base64");
  }
  manifest.resume_row = resume_members.Integer("row", 0, kMaxRecordedRows);
  manifest.resume_message_bytes = resume_members.Integer("message_bytes", 0, 1 << 30);
}

}  // namespace

absl::string_view RecordingStateName(RecordingState state) {
  switch (state) {
    case RecordingState::kRunning:
      return "RUNNING";
    case RecordingState::kComplete:
      return "COMPLETE";
    case RecordingState::kStopped:
      return "STOPPED";
    case RecordingState::kInterrupted:
      return "INTERRUPTED";
    case RecordingState::kFailed:
      return "FAILED";
  }
  return "";
}

int64_t Manifest::RowsOf(int hook_point) const { return std::min(rows(), hook_points[hook_point].max_activations); }

size_t Manifest::ShardOf(int64_t row) const {
  const auto after = std::upper_bound(shards.begin(), shards.end(), row,
                                      [](int64_t wanted, const ShardInfo& shard) { return wanted < shard.first_row; });
  return static_cast<size_t>(after - shards.begin()) - 1;
}

int64_t Manifest::bytes() const {
  int64_t bytes = 0;
  for (const ShardInfo& shard : shards) bytes += shard.bytes;
  return bytes;
}

int64_t Manifest::max_rows() const {
  int64_t rows = 0;
  for (const RecordedHookPoint& point : hook_points) rows = std::max(rows, point.max_activations);
  return rows;
}

absl::Status CheckRecordingName(absl::string_view name) {
  // The name is also that of a folder, which must not be hidden.
  if (!IsName(name) || !absl::ascii_isalnum(static_cast<unsigned char>(name[0]))) {
    return InvalidField(
        "name", absl::StrCat(Quoted(name, 64), " is not a name of a recording: [A-Za-z0-9][A-Za-z0-9._-]{0,127}"));
  }
  return absl::OkStatus();
}

std::string ShardFileName(int64_t first_row, int64_t end_row) {
  return absl::StrFormat("rows-%012d-%012d.safetensors", first_row, end_row);
}

bool IsLeftover(absl::string_view name) {
  return absl::EndsWith(name, kTemporarySuffix) ||
         (absl::StartsWith(name, "rows-") && absl::EndsWith(name, ".safetensors"));
}

std::string FormatManifest(const Manifest& manifest) {
  Json json;
  json["format"] = "hookline-recording";
  json["version"] = manifest.merged ? kMergedVersion : kVersion;
  json["name"] = manifest.name;
  json["state"] = std::string(RecordingStateName(manifest.state));
  json["error"] = manifest.error;
  json["model"] = manifest.model;
  json["fingerprint"] = manifest.fingerprint;
  json["request_digest"] = manifest.request_digest;
  if (!manifest.client.empty()) json["client"] = manifest.client;
  json["deterministic"] = manifest.deterministic;
  json["dtype"] = std::string(DtypeName(manifest.dtype));
  if (manifest.top_k != 0) json["top_k"] = manifest.top_k;
  json["hook_points"] = Json::array();
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    const RecordedHookPoint& point = manifest.hook_points[i];
    json["hook_points"].push_back(Json{{"name", point.name},
                                       {"width", point.width},
                                       {"max_activations", point.max_activations},
                                       {"rows", manifest.RowsOf(static_cast<int>(i))}});
  }
  json["rows"] = manifest.rows();
  json["shard_rows"] = manifest.shard_rows;
  json["source"] = manifest.source;
  json["selection"] = manifest.selection;
  json["shards"] = Json::array();
  for (const ShardInfo& shard : manifest.shards) {
    json["shards"].push_back(Json{{"file", shard.file},
                                  {"first_row", shard.first_row},
                                  {"rows", shard.rows},
                                  {"bytes", shard.bytes},
                                  {"xxh3", shard.xxh3}});
    if (manifest.merged) json["shards"].back()["header_first_row"] = shard.header_first_row;
  }
  json["resume"] = Json{{"token", absl::Base64Escape(manifest.resume_token)},
                        {"row", manifest.resume_row},
                        {"message_bytes", manifest.resume_message_bytes}};
  json["create_time"] = absl::FormatTime(absl::RFC3339_full, manifest.create_time, absl::UTCTimeZone());
  json["update_time"] = absl::FormatTime(absl::RFC3339_full, manifest.update_time, absl::UTCTimeZone());
  // `replace`: an error's text may hold a path that is not UTF-8, which must not throw.
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view text) {
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(text, kMaxManifestDepth);
  if (!json.ok()) return absl::DataLossError(json.status().message());

  absl::Status status;
  Members members(*json, "", status);
  Manifest manifest;
  if (members.String("format", 64) != "hookline-recording") members.Fail("format", "\"hookline-recording\"");
  manifest.merged = members.Integer("version", kVersion, kMergedVersion) == kMergedVersion;
  manifest.name = members.String("name", kMaxNameBytes);
  ReadState(members, manifest);
  manifest.error = members.String("error", 1 << 16);
  manifest.model = members.String("model", 1 << 12);
  manifest.fingerprint = members.String("fingerprint", 64);
  manifest.request_digest = members.String("request_digest", 64);
  if (json->contains("client")) manifest.client = members.String("client", 64);
  manifest.deterministic = members.Boolean("deterministic");
  ReadDtype(members, manifest);
  if (json->contains("top_k")) manifest.top_k = members.Integer("top_k", 1, kMaxWidth);
  ReadHookPoints(members, status, manifest);
  manifest.shard_rows = members.Integer("shard_rows", 1, kMaxRecordedRows);
  manifest.source = members.Object("source");
  manifest.selection = members.Object("selection");
  ReadShards(members, status, manifest);
  if (members.Integer("rows", 0, kMaxRecordedRows) != manifest.rows())
    members.Fail("rows", "the end of the last shard");
  ReadResume(members, status, manifest);
  std::string error;
  for (const auto& [key, time] :
       {std::make_pair("create_time", &manifest.create_time), std::make_pair("update_time", &manifest.update_time)}) {
    if (!absl::ParseTime(absl::RFC3339_full, members.String(key, 64), time, &error)) members.Fail(key, "a time");
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(CheckShards(manifest));
  RETURN_IF_ERROR(CheckSizes(manifest));
  if (manifest.resume_row > manifest.rows()) members.Fail("resume.row", "at most `rows`");
  if (manifest.merged && manifest.state != RecordingState::kComplete && manifest.state != RecordingState::kFailed) {
    members.Fail("state", "COMPLETE or FAILED, as a merged recording must be");
  }
  RETURN_IF_ERROR(status);
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(Directory& directory) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, directory.OpenFile(kManifestFile));
  ASSIGN_OR_RETURN(const std::string text, ReadAll(*file, kMaxManifestBytes));
  auto manifest = ParseManifest(text);
  if (!manifest.ok()) {
    return absl::Status(manifest.status().code(),
                        absl::StrCat(directory.path(), "/", kManifestFile, ": ", manifest.status().message()));
  }
  return manifest;
}

absl::Status WriteManifest(Directory& directory, const Manifest& manifest) {
  const std::string temporary = absl::StrCat(kManifestFile, kTemporarySuffix);
  const std::string json = FormatManifest(manifest);
  if (absl::Status removed = directory.Remove(temporary); !removed.ok() && !absl::IsNotFound(removed)) return removed;
  {
    ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, directory.Create(temporary));
    RETURN_IF_ERROR(file->WriteAt(0, {reinterpret_cast<const uint8_t*>(json.data()), json.size()}));
    RETURN_IF_ERROR(file->Sync());
  }
  RETURN_IF_ERROR(directory.Rename(temporary, kManifestFile));
  return directory.Sync();
}

}  // namespace hookline
