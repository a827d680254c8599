#include "server/service/dataset_service.h"

#include <string>

#include "absl/status/statusor.h"
#include "server/base/status.h"
#include "server/service/plain_call.h"

namespace hookline {
namespace {

void Describe(const Dataset& dataset, const TextRequests& texts, v1::Dataset* out) {
  out->set_name(dataset.name());
  out->set_tokens(dataset.tokens());
  out->set_row_length(dataset.row_length());
  out->set_token_dtype(std::string(TokenDtypeName(dataset.dtype())));
  out->set_largest_token_id(dataset.largest_token_id());
  out->set_fingerprint(dataset.fingerprint());
  const Sidecar* sidecar = texts.SidecarOf(dataset.name());
  if (sidecar == nullptr) return;
  v1::Packing& packing = *out->mutable_packing();
  packing.set_tokenizer_fingerprint(sidecar->tokenizer_fingerprint);
  packing.set_method(sidecar->method);
  for (const auto& [name, value] : sidecar->options) (*packing.mutable_options())[name] = value;
  packing.set_documents(sidecar->documents);
  packing.set_warning(texts.DatasetWarning(dataset.name(), /*model=*/nullptr));
}

}  // namespace

grpc::ServerUnaryReactor* DatasetServiceImpl::ListDatasets(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListDatasetsRequest& /*request*/,
                        v1::ListDatasetsResponse* out) {
    for (const Dataset* dataset : engine_->datasets()) Describe(*dataset, *texts_, out->add_datasets());
    return absl::OkStatus();
  };
  return AnswerCall<v1::ListDatasetsRequest, v1::ListDatasetsResponse>(
      caller_, context, "/hookline.v1.DatasetService/ListDatasets", *request, response, fill);
}

grpc::ServerUnaryReactor* DatasetServiceImpl::GetDataset(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::GetDatasetRequest& get,
                        v1::Dataset* found) -> absl::Status {
    ASSIGN_OR_RETURN(const Dataset* dataset, engine_->FindDataset(get.name()));
    Describe(*dataset, *texts_, found);
    return absl::OkStatus();
  };
  return AnswerCall<v1::GetDatasetRequest, v1::Dataset>(caller_, context, "/hookline.v1.DatasetService/GetDataset",
                                                        *request, response, fill);
}

}  // namespace hookline
