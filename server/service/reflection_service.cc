#include "server/service/reflection_service.h"

#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "server/base/status.h"
#include "server/service/plain_call.h"
#include "server/service/stream_call.h"

namespace hookline {
namespace {

namespace pb = google::protobuf;
namespace reflection = grpc::reflection::v1alpha;

// Adds the file, and after it those that it imports, each once.
void AddFile(const pb::FileDescriptor& file, std::set<const pb::FileDescriptor*>* added,
             reflection::FileDescriptorResponse* out) {
  if (!added->insert(&file).second) return;
  pb::FileDescriptorProto proto;
  file.CopyTo(&proto);
  out->add_file_descriptor_proto(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) AddFile(*file.dependency(i), added, out);
}

absl::Status FillFile(const pb::FileDescriptor* file, absl::string_view what,
                      reflection::ServerReflectionResponse* out) {
  if (file == nullptr) return absl::NotFoundError(absl::StrCat("this server has no ", what));
  std::set<const pb::FileDescriptor*> added;
  AddFile(*file, &added, out->mutable_file_descriptor_response());
  return absl::OkStatus();
}

absl::Status FillExtensions(const std::string& name, reflection::ServerReflectionResponse* out) {
  const pb::DescriptorPool& pool = *pb::DescriptorPool::generated_pool();
  const pb::Descriptor* const message = pool.FindMessageTypeByName(name);
  if (message == nullptr) return absl::NotFoundError(absl::StrCat("this server has no message ", name));
  std::vector<const pb::FieldDescriptor*> extensions;
  pool.FindAllExtensions(message, &extensions);
  reflection::ExtensionNumberResponse& response = *out->mutable_all_extension_numbers_response();
  response.set_base_type_name(message->full_name());
  for (const pb::FieldDescriptor* extension : extensions) response.add_extension_number(extension->number());
  return absl::OkStatus();
}

absl::Status Fill(const reflection::ServerReflectionRequest& request, const std::vector<std::string>& services,
                  reflection::ServerReflectionResponse* out) {
  using Request = reflection::ServerReflectionRequest;
  const pb::DescriptorPool& pool = *pb::DescriptorPool::generated_pool();
  switch (request.message_request_case()) {
    case Request::kFileByFilename:
      return FillFile(pool.FindFileByName(request.file_by_filename()),
                      absl::StrCat("file ", request.file_by_filename()), out);
    case Request::kFileContainingSymbol:
      return FillFile(pool.FindFileContainingSymbol(request.file_containing_symbol()),
                      absl::StrCat("symbol ", request.file_containing_symbol()), out);
    case Request::kFileContainingExtension: {
      const reflection::ExtensionRequest& wanted = request.file_containing_extension();
      const pb::Descriptor* const message = pool.FindMessageTypeByName(wanted.containing_type());
      const pb::FieldDescriptor* const extension =
          message == nullptr ? nullptr : pool.FindExtensionByNumber(message, wanted.extension_number());
      return FillFile(extension == nullptr ? nullptr : extension->file(),
                      absl::StrCat("extension ", wanted.extension_number(), " of ", wanted.containing_type()), out);
    }
    case Request::kAllExtensionNumbersOfType:
      return FillExtensions(request.all_extension_numbers_of_type(), out);
    case Request::kListServices:
      for (const std::string& service : services) {
        out->mutable_list_services_response()->add_service()->set_name(service);
      }
      return absl::OkStatus();
    case Request::MESSAGE_REQUEST_NOT_SET:
      break;
  }
  return InvalidField("message_request", "is not set; ask for one of its fields");
}

// Reads each question when the answer to the one before has been written.
class ReflectionCall final
    : public StreamCall<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  // `services` must outlive the call.
  ReflectionCall(const std::vector<std::string>& services, TaskThreads* threads)
      : StreamCall("ServerReflectionInfo", threads), services_(services) {}

  void Begin(const absl::Status& allowed) {
    if (!allowed.ok()) return Refuse(allowed);
    StartRead(&input_);
  }

  void OnReadDone(bool ok) override {
    Guard([this, ok] {
      if (!ok) return Answer(Step::Finish(absl::OkStatus()));
      const auto response = AnswerReflection(input_, services_);
      if (!response.ok()) return Refuse(response.status());
      Answer(Step::Write(Serialized(*response)));
    });
    Advance();
  }

 private:
  void Answer(Step step) {
    absl::MutexLock lock(&mutex_);
    next_ = std::move(step);
  }

  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::exchange(next_, std::nullopt).value_or(Step::Wait());
  }

  void Written() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!finished()) StartRead(&input_);
  }

  const std::vector<std::string>& services_;
  // gRPC uses this while a read is in flight, otherwise OnReadDone does.
  grpc::ByteBuffer input_;
  std::optional<Step> next_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<reflection::ServerReflectionResponse> AnswerReflection(const grpc::ByteBuffer& message,
                                                                      const std::vector<std::string>& services) {
  if (message.Length() > kMaxReflectionRequestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", message.Length(), " bytes, more than the ",
                                                     kMaxReflectionRequestBytes, " of a ServerReflectionRequest"));
  }
  ASSIGN_OR_RETURN(const auto request, ParsePlain<reflection::ServerReflectionRequest>(message));
  reflection::ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  if (const absl::Status status = Fill(request, services, &response); !status.ok()) {
    const grpc::Status shown = ToGrpc(status);
    reflection::ErrorResponse& error = *response.mutable_error_response();
    error.set_error_code(shown.error_code());
    error.set_error_message(shown.error_message());
  }
  return response;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ReflectionServiceImpl::ServerReflectionInfo(
    grpc::CallbackServerContext* context) {
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &record);
  auto call = std::make_shared<ReflectionCall>(services_, threads_);
  call->Keep(context, std::move(record));
  call->Begin(client.status());
  return call.get();
}

}  // namespace hookline
