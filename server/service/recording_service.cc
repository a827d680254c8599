#include "server/service/recording_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/service/auth/port_credentials.h"
#include "server/service/exceptions.h"
#include "server/service/recording_calls.h"
#include "server/service/wire/recording_conversion.h"

namespace hookline {
namespace {

constexpr int kDefaultPageSize = 100;
// Without hook points and shards a recording takes about a kilobyte, with an error's text some more.
constexpr int kMaxPageSize = 1000;

absl::Status List(const Catalog& catalog, const v1::ListRecordingsRequest& request,
                  v1::ListRecordingsResponse* response) {
  if (request.page_size() < 0 || request.page_size() > kMaxPageSize) {
    return InvalidField("page_size", absl::StrCat(request.page_size(), " is not from 0 to ", kMaxPageSize));
  }
  if (!request.page_token().empty() && !CheckRecordingName(request.page_token()).ok()) {
    return InvalidField("page_token", "is not a `next_page_token`");
  }
  const size_t page_size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  auto manifests = catalog.List(request.page_token(), static_cast<int64_t>(page_size) + 1);
  if (manifests.size() > page_size) {
    manifests.resize(page_size);
    response->set_next_page_token(manifests.back()->name);
  }
  for (const auto& manifest : manifests) *response->add_recordings() = ToProto(*manifest, RecordingView::kBasic);
  return absl::OkStatus();
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* RecordingServiceImpl::Persist(grpc::CallbackServerContext* context,
                                                                          const grpc::ByteBuffer* request) {
  auto call = std::make_shared<PersistCall>(recorder_, &wakes_, texts_);
  call->Keep(context);
  call->Begin(ClientOf(authenticator_, *context), *request);
  return call.get();
}

grpc::ServerUnaryReactor* RecordingServiceImpl::ListRecordings(grpc::CallbackServerContext* context,
                                                               const v1::ListRecordingsRequest* request,
                                                               v1::ListRecordingsResponse* response) {
  return AnswerCall(context, "ListRecordings", [&] { return List(recorder_->catalog(), *request, response); });
}

grpc::ServerUnaryReactor* RecordingServiceImpl::GetRecording(grpc::CallbackServerContext* context,
                                                             const v1::GetRecordingRequest* request,
                                                             v1::Recording* response) {
  return AnswerCall(context, "GetRecording", [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, recorder_->catalog().Get(request->name()));
    *response = ToProto(*manifest, RecordingView::kFull);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* RecordingServiceImpl::StopRecording(grpc::CallbackServerContext* context,
                                                              const v1::StopRecordingRequest* request,
                                                              v1::Recording* response) {
  auto call = std::make_shared<StopCall>(recorder_, &wakes_, response);
  call->Keep(context);
  call->Begin(request->name(), ClientOf(authenticator_, *context));
  return call.get();
}

grpc::ServerUnaryReactor* RecordingServiceImpl::DeleteRecording(grpc::CallbackServerContext* context,
                                                                const v1::DeleteRecordingRequest* request,
                                                                v1::DeleteRecordingResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // `response` and the reactor are there until Finish.
  disk_.Post([this, reactor, response, name = request->name(), client = ClientOf(authenticator_, *context)] {
    reactor->Finish(ToGrpc(CatchExceptions("DeleteRecording", [&]() -> absl::Status {
      RETURN_IF_ERROR(client.status());
      RETURN_IF_ERROR(recorder_->CheckMayChange(name, client->identity));
      ASSIGN_OR_RETURN(const int64_t bytes, recorder_->catalog().Delete(name));
      response->set_bytes(bytes);
      return absl::OkStatus();
    })));
  });
  return reactor;
}

grpc::ServerWriteReactor<v1::VerifyRecordingResponse>* RecordingServiceImpl::VerifyRecording(
    grpc::CallbackServerContext* context, const v1::VerifyRecordingRequest* request) {
  auto call = std::make_shared<VerifyCall>(recorder_, &verify_, &verifications_);
  call->Keep(context);
  call->Begin(request->name());
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RecordingServiceImpl::ReadRecording(grpc::CallbackServerContext* context,
                                                                                const grpc::ByteBuffer* request) {
  auto call = std::make_shared<ReadCall>(&wakes_, TakeOffered(memories_, *context));
  call->Keep(context);
  call->Begin(recorder_, &disk_, *request);
  return call.get();
}

}  // namespace hookline
