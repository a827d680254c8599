#include "server/service/dataset_service.h"

#include <string>

#include "absl/status/statusor.h"
#include "server/service/status_mapping.h"

namespace hookline {
namespace {

void Describe(const Dataset& dataset, v1::Dataset* out) {
  out->set_name(dataset.name());
  out->set_tokens(dataset.tokens());
  out->set_row_length(dataset.row_length());
  out->set_token_dtype(std::string(TokenDtypeName(dataset.dtype())));
  out->set_largest_token_id(dataset.largest_token_id());
  out->set_fingerprint(dataset.fingerprint());
}

}  // namespace

grpc::ServerUnaryReactor* DatasetServiceImpl::ListDatasets(grpc::CallbackServerContext* context,
                                                           const v1::ListDatasetsRequest* /*request*/,
                                                           v1::ListDatasetsResponse* response) {
  for (const Dataset* dataset : engine_->datasets()) Describe(*dataset, response->add_datasets());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* DatasetServiceImpl::GetDataset(grpc::CallbackServerContext* context,
                                                         const v1::GetDatasetRequest* request, v1::Dataset* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<const Dataset*> dataset = engine_->FindDataset(request->name());
  if (dataset.ok()) Describe(**dataset, response);
  reactor->Finish(ToGrpc(dataset.status()));
  return reactor;
}

}  // namespace hookline
