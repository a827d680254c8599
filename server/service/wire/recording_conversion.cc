#include "server/service/wire/recording_conversion.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/timestamp.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/base/status.h"
#include "server/service/wire/request_conversion.h"

namespace hookline {
namespace {

// This many take about a megabyte, so that a recording stays below the 4 MiB that a client takes.
constexpr size_t kMaxShards = 10000;

v1::RecordingState ToProto(RecordingState state) {
  switch (state) {
    case RecordingState::kRunning:
      return v1::RECORDING_STATE_RUNNING;
    case RecordingState::kComplete:
      return v1::RECORDING_STATE_COMPLETE;
    case RecordingState::kStopped:
      return v1::RECORDING_STATE_STOPPED;
    case RecordingState::kInterrupted:
      return v1::RECORDING_STATE_INTERRUPTED;
    case RecordingState::kFailed:
      return v1::RECORDING_STATE_FAILED;
  }
  return v1::RECORDING_STATE_UNSPECIFIED;
}

void SetTime(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

// Reads an object of the manifest, which has the fields of the proto. Returns false if it does not fit (it may have
// been edited).
template <typename Message>
bool Read(const nlohmann::json& object, Message* message) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const std::string text = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return google::protobuf::util::JsonStringToMessage(text, message, options).ok();
}

}  // namespace

v1::Recording ToProto(const Manifest& manifest, RecordingView view) {
  v1::Recording recording;
  recording.set_name(manifest.name);
  recording.set_state(ToProto(manifest.state));
  recording.set_error(manifest.error);
  recording.set_model(manifest.model);
  recording.set_fingerprint(manifest.fingerprint);
  recording.set_hook_point_count(static_cast<int32_t>(manifest.hook_points.size()));
  recording.set_dtype(hookline::ToProto(manifest.dtype));
  recording.set_rows(manifest.rows());
  recording.set_bytes(manifest.bytes());
  recording.set_shard_count(static_cast<int32_t>(manifest.shards.size()));
  if (const auto dataset = manifest.source.find("dataset"); dataset != manifest.source.end()) {
    if (!Read(*dataset, recording.mutable_dataset())) recording.clear_dataset();
  }
  if (const auto tokens = manifest.source.find("tokens"); tokens != manifest.source.end() && tokens->is_object()) {
    const auto sequences = tokens->find("sequences");
    if (sequences != tokens->end() && sequences->is_number_unsigned()) {
      recording.set_token_sequences(sequences->get<int64_t>());
    }
  }
  if (!manifest.selection.empty() && !Read(manifest.selection, recording.mutable_selection())) {
    recording.clear_selection();
  }
  recording.set_deterministic(manifest.deterministic);
  recording.set_request_digest(manifest.request_digest);
  recording.set_client(manifest.client);
  SetTime(manifest.create_time, recording.mutable_create_time());
  SetTime(manifest.update_time, recording.mutable_update_time());
  recording.set_resume_token(manifest.resume_token);
  recording.set_top_k(static_cast<int32_t>(manifest.top_k));
  if (view == RecordingView::kBasic) return recording;
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    const RecordedHookPoint& from = manifest.hook_points[i];
    v1::RecordedHookPoint& point = *recording.add_hook_points();
    point.set_hook_point(from.name);
    point.set_width(static_cast<int32_t>(from.width));
    point.set_max_activations(from.max_activations);
    point.set_rows(manifest.RowsOf(static_cast<int>(i)));
  }
  if (manifest.shards.size() > kMaxShards) return recording;
  for (const ShardInfo& from : manifest.shards) {
    v1::Shard& shard = *recording.add_shards();
    shard.set_file(from.file);
    shard.set_first_row(from.first_row);
    shard.set_rows(from.rows);
    shard.set_bytes(from.bytes);
    shard.set_xxh3(from.xxh3);
    shard.set_header_first_row(from.header_first_row);
  }
  return recording;
}

absl::StatusOr<ReplayRequest> FromProto(const v1::ReadRecordingRequest& request) {
  if (!v1::Encoding_IsValid(request.encoding())) {
    return InvalidField("encoding", absl::StrCat("no value has the number ", static_cast<int>(request.encoding()),
                                                 "; the values are ENCODING_BYTES, ENCODING_VALUES"));
  }
  ReplayRequest out;
  out.hook_points = {request.hook_points().begin(), request.hook_points().end()};
  out.first_row = request.first_row();
  out.row_count = request.row_count();
  if (request.has_max_activations()) out.max_activations = request.max_activations();
  out.max_activations_by_hook_point = {request.max_activations_by_hook_point().begin(),
                                       request.max_activations_by_hook_point().end()};
  if (request.has_shuffle_seed()) out.shuffle_seed = request.shuffle_seed();
  out.encoding = request.encoding() == v1::ENCODING_VALUES ? Encoding::kValues : Encoding::kBytes;
  out.provenance = request.provenance();
  out.max_message_bytes = request.max_message_bytes();
  out.resume_token = request.resume_token();
  return out;
}

}  // namespace hookline
