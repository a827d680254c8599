// The proto DatasetService, which describes the engine's token datasets.
#ifndef HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_

#include "hookline/v1/dataset_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/caller.h"
#include "server/service/text_requests.h"

namespace hookline {

// The methods are raw, so that a request's size is known before it is parsed (plain_call.h).
using RawDatasetService = v1::DatasetService::WithRawCallbackMethod_ListDatasets<
    v1::DatasetService::WithRawCallbackMethod_GetDataset<v1::DatasetService::Service>>;

class DatasetServiceImpl final : public RawDatasetService {
 public:
  // Both must outlive the server that this service is registered with.
  DatasetServiceImpl(const CallerCheck& caller, const Engine* engine, const TextRequests* texts)
      : caller_(caller), engine_(engine), texts_(texts) {}

  grpc::ServerUnaryReactor* ListDatasets(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetDataset(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  const CallerCheck caller_;
  const Engine* const engine_;
  const TextRequests* const texts_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_
