// The proto ModelService, which describes the engine's models.
#ifndef HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_

#include "hookline/v1/model_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/caller.h"
#include "server/text/model_tokenizers.h"

namespace hookline {

// The methods are raw, so that a request's size is known before it is parsed (plain_call.h).
using RawModelService = v1::ModelService::WithRawCallbackMethod_ListModels<
    v1::ModelService::WithRawCallbackMethod_GetModel<v1::ModelService::Service>>;

class ModelServiceImpl final : public RawModelService {
 public:
  // Both must outlive the server that this service is registered with; `tokenizers` may be null.
  ModelServiceImpl(const CallerCheck& caller, const Engine* engine, const ModelTokenizers* tokenizers)
      : caller_(caller), engine_(engine), tokenizers_(tokenizers) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  const CallerCheck caller_;
  const Engine* const engine_;
  const ModelTokenizers* const tokenizers_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_
