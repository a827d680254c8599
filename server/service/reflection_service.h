// The proto ServerReflection, which describes the server's services and messages to clients without our protos.
//
// gRPC has a reflection service of its own. But that one parses requests as large as the largest capture request, which
// takes forty times their bytes, and cannot check who calls.
#ifndef HOOKLINE_SERVER_SERVICE_REFLECTION_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_REFLECTION_SERVICE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "server/service/auth/caller.h"
#include "server/service/task_threads.h"

namespace hookline {

// A request is little more than a name, which has some dozens of bytes.
constexpr size_t kMaxReflectionRequestBytes = size_t{4} << 10;

// Answers one question about the program's descriptors. `services` are the full names of the server's services. A
// question without an answer gets an ErrorResponse. INVALID_ARGUMENT: the message is not a question;
// RESOURCE_EXHAUSTED: it is larger than kMaxReflectionRequestBytes.
absl::StatusOr<grpc::reflection::v1alpha::ServerReflectionResponse> AnswerReflection(
    const grpc::ByteBuffer& message, const std::vector<std::string>& services);

// The method is raw, so that a request's size is known before it is parsed.
using RawReflectionService = grpc::reflection::v1alpha::ServerReflection::WithRawCallbackMethod_ServerReflectionInfo<
    grpc::reflection::v1alpha::ServerReflection::Service>;

class ReflectionServiceImpl final : public RawReflectionService {
 public:
  // `threads` must outlive the server that this service is registered with.
  ReflectionServiceImpl(const CallerCheck& caller, std::vector<std::string> services, TaskThreads* threads)
      : caller_(caller), services_(std::move(services)), threads_(threads) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServerReflectionInfo(
      grpc::CallbackServerContext* context) override;

 private:
  const CallerCheck caller_;
  const std::vector<std::string> services_;
  TaskThreads* const threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_REFLECTION_SERVICE_H_
