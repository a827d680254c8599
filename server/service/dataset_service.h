// The proto DatasetService: which token datasets the engine holds.
#ifndef HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_

#include "hookline/v1/dataset_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/text_requests.h"

namespace hookline {

class DatasetServiceImpl final : public v1::DatasetService::CallbackService {
 public:
  // Both must outlive the server that this service is registered with.
  DatasetServiceImpl(const Engine* engine, const TextRequests* texts) : engine_(engine), texts_(texts) {}

  grpc::ServerUnaryReactor* ListDatasets(grpc::CallbackServerContext* context, const v1::ListDatasetsRequest* request,
                                         v1::ListDatasetsResponse* response) override;
  grpc::ServerUnaryReactor* GetDataset(grpc::CallbackServerContext* context, const v1::GetDatasetRequest* request,
                                       v1::Dataset* response) override;

 private:
  const Engine* const engine_;
  const TextRequests* const texts_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_DATASET_SERVICE_H_
