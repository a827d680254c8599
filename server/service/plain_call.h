// Unary calls with small messages. The client is checked first. gRPC hands over the request's bytes, so that its size
// is known before it is parsed:
//
//   grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
//                                      grpc::ByteBuffer* response) {
//     return AnswerCall<v1::GetModelRequest, v1::Model>(
//         caller_, context, "/hookline.v1.ModelService/GetModel", *request, response,
//         [&](const AuthClient& client, const v1::GetModelRequest& request, v1::Model* model) -> absl::Status { ... });
//   }
#ifndef HOOKLINE_SERVER_SERVICE_PLAIN_CALL_H_
#define HOOKLINE_SERVER_SERVICE_PLAIN_CALL_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/server_callback.h"
#include "grpcpp/support/slice.h"
#include "server/base/status.h"
#include "server/service/auth/caller.h"
#include "server/service/call_record.h"
#include "server/service/exceptions.h"
#include "server/service/status_mapping.h"
#include "server/service/task_threads.h"

namespace hookline {

// No request without tokens for a model needs more. Parsed, a message of empty parts takes thirty times its bytes, so
// gRPC's own limit, which leaves room for tokens, would be too large here.
constexpr size_t kMaxPlainRequestBytes = size_t{4} << 20;

// Parses a message. RESOURCE_EXHAUSTED: it is larger than kMaxPlainRequestBytes; INVALID_ARGUMENT: it is not a Request.
template <typename Request>
absl::StatusOr<Request> ParsePlain(grpc::ByteBuffer message) {
  const auto& name = Request::descriptor()->name();
  if (message.Length() > kMaxPlainRequestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", message.Length(), " bytes, more than the ",
                                                     kMaxPlainRequestBytes, " of a ", name));
  }
  absl::StatusOr<Request> request(absl::in_place);
  grpc::ProtoBufferReader reader(&message);
  if (!request->ParseFromZeroCopyStream(&reader)) {
    return absl::InvalidArgumentError(absl::StrCat("the request is not a ", name, " message"));
  }
  return request;
}

inline grpc::ByteBuffer Serialized(const google::protobuf::Message& message) {
  grpc::Slice bytes(message.SerializeAsString());
  return grpc::ByteBuffer(&bytes, 1);
}

// Finishes a unary call with `status` and, if that is OK, with `response`.
inline void FinishRecorded(grpc::ServerUnaryReactor* reactor, CallRecord record, const absl::Status& status,
                           const grpc::ByteBuffer& response) {
  if (status.ok()) record.AddBytes(static_cast<int64_t>(response.Length()));
  // The record ends before the client gets the answer, so that metrics read afterwards have the call.
  record.End(status);
  reactor->Finish(ToGrpc(status));
}

// Finishes a call with the status that `fill` returns after it has filled in the response.
template <typename Request, typename Response, typename Fill>
void FinishCall(grpc::ServerUnaryReactor* reactor, CallRecord record, const absl::StatusOr<AuthClient>& client,
                absl::string_view method, const grpc::ByteBuffer& message, grpc::ByteBuffer* response,
                const Fill& fill) {
  const absl::string_view name = method.substr(method.rfind('/') + 1);
  const absl::Status status = CatchExceptions(name, [&]() -> absl::Status {
    RETURN_IF_ERROR(client.status());
    ASSIGN_OR_RETURN(const Request request, ParsePlain<Request>(message));
    Response filled;
    RETURN_IF_ERROR(fill(*client, request, &filled));
    *response = Serialized(filled);
    return absl::OkStatus();
  });
  FinishRecorded(reactor, std::move(record), status, *response);
}

// Answers a unary call at once, or refuses it if its client may not call `method` (/package.Service/Method).
template <typename Request, typename Response, typename Fill>
grpc::ServerUnaryReactor* AnswerCall(const CallerCheck& caller, grpc::CallbackServerContext* context,
                                     absl::string_view method, const grpc::ByteBuffer& message,
                                     grpc::ByteBuffer* response, const Fill& fill) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  CallRecord record;
  const absl::StatusOr<AuthClient> client = caller.Authorize(*context, method, &record);
  FinishCall<Request, Response>(reactor, std::move(record), client, method, message, response, fill);
  return reactor;
}

// Answers a unary call on `threads`, but refuses it at once. `method` lives for ever.
template <typename Request, typename Response, typename Fill>
grpc::ServerUnaryReactor* AnswerCallOn(TaskThreads* threads, const CallerCheck& caller,
                                       grpc::CallbackServerContext* context, absl::string_view method,
                                       const grpc::ByteBuffer& message, grpc::ByteBuffer* response, Fill fill) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  CallRecord record;
  absl::StatusOr<AuthClient> client = caller.Authorize(*context, method, &record);
  if (!client.ok()) {
    FinishRecorded(reactor, std::move(record), client.status(), *response);
    return reactor;
  }
  // `response` and the reactor are valid until Finish. The request waits as bytes, which count as gRPC's memory.
  threads->Post([reactor, record, client = std::move(client), method, message, response, fill = std::move(fill)] {
    FinishCall<Request, Response>(reactor, record, client, method, message, response, fill);
  });
  return reactor;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_PLAIN_CALL_H_
