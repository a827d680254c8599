#include "server/service/status_mapping.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using google::protobuf::internal::WireFormatLite;

// A field's path names positions, so it is short; one that is not comes from a name in the request.
constexpr size_t kMaxFieldBytes = 256;

// At most `limit` bytes of `text`, cut between characters of UTF-8.
std::string CutTo(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "...");
}

void AppendVarint(uint64_t value, std::string* out) {
  uint8_t encoded[10];
  const uint8_t* end = google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(value, encoded);
  out->append(reinterpret_cast<const char*>(encoded), static_cast<size_t>(end - encoded));
}

void AppendBytes(int field, absl::string_view value, std::string* out) {
  AppendVarint(WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED), out);
  AppendVarint(value.size(), out);
  out->append(value.data(), value.size());
}

std::string BadRequestDetails(const absl::Status& status, absl::string_view message, absl::string_view field) {
  std::string violation;
  AppendBytes(1, CutTo(field, kMaxFieldBytes), &violation);
  AppendBytes(2, message, &violation);
  google::protobuf::Any bad_request;
  bad_request.set_type_url("type.googleapis.com/google.rpc.BadRequest");
  AppendBytes(1, violation, bad_request.mutable_value());

  std::string details;
  AppendVarint(WireFormatLite::MakeTag(1, WireFormatLite::WIRETYPE_VARINT), &details);
  AppendVarint(static_cast<uint64_t>(status.raw_code()), &details);
  AppendBytes(2, message, &details);
  AppendBytes(3, bad_request.SerializeAsString(), &details);
  return details;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The codes are the same numbers; code() maps those that a later Abseil may add to UNKNOWN.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::string message = CutTo(status.message(), kMaxStatusMessageBytes);
  const std::string field = FieldOf(status);
  return field.empty() ? grpc::Status(code, message)
                       : grpc::Status(code, message, BadRequestDetails(status, message, field));
}

}  // namespace hookline
