#include "server/service/recording_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/service/merge_call.h"
#include "server/service/plain_call.h"
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
  auto call = std::make_shared<PersistCall>(recorder_, &threads_->wakes, texts_);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.RecordingService/Persist", &record);
  call->Keep(context, std::move(record));
  call->Begin(client, *request);
  return call.get();
}

grpc::ServerUnaryReactor* RecordingServiceImpl::ListRecordings(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* request,
                                                               grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListRecordingsRequest& list,
                        v1::ListRecordingsResponse* out) { return List(recorder_->catalog(), list, out); };
  return AnswerCall<v1::ListRecordingsRequest, v1::ListRecordingsResponse>(
      caller_, context, "/hookline.v1.RecordingService/ListRecordings", *request, response, fill);
}

grpc::ServerUnaryReactor* RecordingServiceImpl::GetRecording(grpc::CallbackServerContext* context,
                                                             const grpc::ByteBuffer* request,
                                                             grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::GetRecordingRequest& get,
                        v1::Recording* found) -> absl::Status {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, recorder_->catalog().Get(get.name()));
    *found = ToProto(*manifest, RecordingView::kFull);
    return absl::OkStatus();
  };
  return AnswerCall<v1::GetRecordingRequest, v1::Recording>(
      caller_, context, "/hookline.v1.RecordingService/GetRecording", *request, response, fill);
}

grpc::ServerUnaryReactor* RecordingServiceImpl::StopRecording(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request,
                                                              grpc::ByteBuffer* response) {
  auto call = std::make_shared<StopCall>(recorder_, &threads_->wakes, response);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.RecordingService/StopRecording", &record);
  call->Keep(context, std::move(record));
  call->Begin(client, *request);
  return call.get();
}

grpc::ServerUnaryReactor* RecordingServiceImpl::DeleteRecording(grpc::CallbackServerContext* context,
                                                                const grpc::ByteBuffer* request,
                                                                grpc::ByteBuffer* response) {
  const auto fill = [this](const AuthClient& client, const v1::DeleteRecordingRequest& remove,
                           v1::DeleteRecordingResponse* out) -> absl::Status {
    RETURN_IF_ERROR(recorder_->CheckMayChange(remove.name(), client.identity));
    ASSIGN_OR_RETURN(const int64_t bytes, recorder_->catalog().Delete(remove.name()));
    out->set_bytes(bytes);
    return absl::OkStatus();
  };
  return AnswerCallOn<v1::DeleteRecordingRequest, v1::DeleteRecordingResponse>(
      &threads_->disk, caller_, context, "/hookline.v1.RecordingService/DeleteRecording", *request, response, fill);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RecordingServiceImpl::VerifyRecording(grpc::CallbackServerContext* context,
                                                                                  const grpc::ByteBuffer* request) {
  auto call = std::make_shared<VerifyCall>(recorder_, &threads_->verify, &threads_->verifications);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.RecordingService/VerifyRecording", &record);
  call->Keep(context, std::move(record));
  call->Begin(client, *request);
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RecordingServiceImpl::MergeRecordings(grpc::CallbackServerContext* context,
                                                                                  const grpc::ByteBuffer* request) {
  auto call = std::make_shared<MergeCall>(recorder_, &threads_->verify, &threads_->verifications);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.RecordingService/MergeRecordings", &record);
  call->Keep(context, std::move(record));
  call->Begin(client, *request);
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RecordingServiceImpl::ReadRecording(grpc::CallbackServerContext* context,
                                                                                const grpc::ByteBuffer* request) {
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.RecordingService/ReadRecording", &record);
  auto call = std::make_shared<ReadCall>(&threads_->wakes, TakeOffered(memories_, *context, caller_.uid()));
  call->Keep(context, std::move(record));
  call->Begin(client, recorder_, &threads_->disk, *request);
  return call.get();
}

}  // namespace hookline
