#include "client/cpp/rpc_status.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "google/rpc/error_details.pb.h"
#include "server/base/escape.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Nobody wants to wait for longer than that without being told.
constexpr absl::Duration kMaxRetryDelay = absl::Hours(1);

// Calls `visit` with each length-delimited field of an encoded message, until it is malformed or ends.
void VisitFields(absl::string_view message, const std::function<void(int number, const std::string& value)>& visit) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(message.data()), static_cast<int>(message.size()));
  while (uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) return;
      continue;
    }
    uint32_t bytes;
    std::string value;
    if (!input.ReadVarint32(&bytes) || !input.ReadString(&value, static_cast<int>(bytes))) return;
    visit(WireFormatLite::GetTagFieldNumber(tag), value);
  }
}

}  // namespace

std::string BadRequestField(absl::string_view details) {
  std::string field;
  VisitFields(details, [&](int number, const std::string& any) {
    if (number != 3) return;
    std::string type_url;
    std::string bad_request;
    VisitFields(any, [&](int number, const std::string& value) { (number == 1 ? type_url : bad_request) = value; });
    if (!absl::EndsWith(type_url, "/google.rpc.BadRequest")) return;
    VisitFields(bad_request, [&](int number, const std::string& violation) {
      if (number != 1) return;
      VisitFields(violation, [&](int number, const std::string& value) {
        if (number == 1 && field.empty()) field = value;
      });
    });
  });
  return field;
}

std::optional<absl::Duration> RetryDelay(absl::string_view details) {
  std::optional<absl::Duration> delay;
  VisitFields(details, [&](int number, const std::string& any) {
    if (number != 3) return;
    std::string type_url;
    std::string value;
    VisitFields(any, [&](int number, const std::string& field) { (number == 1 ? type_url : value) = field; });
    google::rpc::RetryInfo retry;
    if (!absl::EndsWith(type_url, "/google.rpc.RetryInfo") || !retry.ParseFromString(value)) return;
    delay = absl::Seconds(retry.retry_delay().seconds()) + absl::Nanoseconds(retry.retry_delay().nanos());
    delay = std::clamp(*delay, absl::ZeroDuration(), kMaxRetryDelay);
  });
  return delay;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  // The bytes are a server's, so they are escaped here once for everyone who shows the status.
  absl::Status converted =
      WithField(absl::Status(static_cast<absl::StatusCode>(status.error_code()), Escaped(status.error_message())),
                Escaped(BadRequestField(status.error_details())));
  const std::optional<absl::Duration> delay = RetryDelay(status.error_details());
  return delay.has_value() ? WithRetryAfter(std::move(converted), *delay) : converted;
}

}  // namespace hookline::client
