// The proto EvaluationService in front of the engine.
#ifndef HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_

#include "hookline/v1/evaluation_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/caller.h"
#include "server/service/task_threads.h"
#include "server/service/text_requests.h"

namespace hookline {

// Both methods are raw, so that a message's size is known before it is parsed.
using RawEvaluationService = v1::EvaluationService::WithRawCallbackMethod_Score<
    v1::EvaluationService::WithRawCallbackMethod_Substitute<v1::EvaluationService::Service>>;

class EvaluationServiceImpl final : public RawEvaluationService {
 public:
  // All must outlive the server that this service is registered with. Woken calls continue on `wakes`.
  EvaluationServiceImpl(const CallerCheck& caller, Engine* engine, TextRequests* texts, TaskThreads* wakes)
      : caller_(caller), engine_(engine), texts_(texts), wakes_(wakes) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Score(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Substitute(
      grpc::CallbackServerContext* context) override;

 private:
  const CallerCheck caller_;
  Engine* const engine_;
  TextRequests* const texts_;
  TaskThreads* const wakes_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_
