// The proto ModelService: what the engine's models are.
#ifndef HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_

#include "hookline/v1/model_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/text/model_tokenizers.h"

namespace hookline {

class ModelServiceImpl final : public v1::ModelService::CallbackService {
 public:
  // Both must outlive the server that this service is registered with; `tokenizers` may be null.
  ModelServiceImpl(const Engine* engine, const ModelTokenizers* tokenizers)
      : engine_(engine), tokenizers_(tokenizers) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::Model* response) override;

 private:
  const Engine* const engine_;
  const ModelTokenizers* const tokenizers_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_MODEL_SERVICE_H_
