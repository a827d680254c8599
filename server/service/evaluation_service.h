// The proto EvaluationService in front of the engine.
#ifndef HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_

#include "hookline/v1/evaluation_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/authenticator.h"
#include "server/service/task_threads.h"
#include "server/service/text_requests.h"

namespace hookline {

// Score is raw, so that a request's size is known before it is parsed.
using RawEvaluationService = v1::EvaluationService::WithRawCallbackMethod_Score<v1::EvaluationService::Service>;

class EvaluationServiceImpl final : public RawEvaluationService {
 public:
  // All must outlive the server that this service is registered with. Without an authenticator every address is a
  // client that may do everything.
  EvaluationServiceImpl(Engine* engine, TextRequests* texts, const Authenticator* authenticator)
      : engine_(engine), texts_(texts), authenticator_(authenticator) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Score(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;

 private:
  Engine* const engine_;
  TextRequests* const texts_;
  const Authenticator* const authenticator_;
  TaskThreads wakes_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_EVALUATION_SERVICE_H_
