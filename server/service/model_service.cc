#include "server/service/model_service.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/model/aliases.h"
#include "server/service/plain_call.h"
#include "server/service/wire/request_conversion.h"

namespace hookline {
namespace {

// Llama 3 has 256 of them.
constexpr size_t kMaxSpecialTokens = 1024;

void DescribeTokenizer(const ModelTokenizers* tokenizers, v1::Model* out) {
  const Tokenizer* tokenizer = tokenizers == nullptr ? nullptr : tokenizers->Get(out->name());
  if (tokenizer == nullptr) {
    out->set_tokenizer(absl::StrCat(
        "none: ", tokenizers == nullptr ? "this server has no tokenizers" : tokenizers->WhyMissing(out->name())));
    return;
  }
  out->set_tokenizer(tokenizer->description());
  out->set_tokenizer_fingerprint(tokenizer->fingerprint());
  for (const SpecialToken& token : tokenizer->special_tokens(kMaxSpecialTokens)) {
    *out->add_special_tokens() = ToProto(token);
  }
}

void DescribeReplicas(const EngineSnapshot& snapshot, v1::Model* out) {
  std::string devices;
  for (const EngineSnapshot::ModelLoad& model : snapshot.models) {
    if (model.model != out->name()) continue;
    for (const EngineSnapshot::ReplicaLoad& load : model.replicas) {
      v1::Replica& replica = *out->add_replicas();
      for (const Stage& one : load.stages) {
        v1::Stage& stage = *replica.add_stages();
        stage.set_device(one.device);
        stage.set_first_block(one.first_block);
        stage.set_blocks(one.blocks);
        stage.set_weight_bytes(one.weight_bytes);
      }
      replica.set_lost(load.is_lost);
      replica.set_load(load.busy_share);
      replica.set_tokens(load.tokens);
      replica.set_batches(static_cast<int32_t>(load.launched_batches));
      absl::StrAppend(&devices, devices.empty() ? "" : ",", load.devices());
    }
  }
  if (!devices.empty()) out->set_device(devices);
}

// Fills in everything but the hook points.
void Describe(const ModelInfo& info, const EngineSnapshot& snapshot, const ModelTokenizers* tokenizers,
              v1::Model* out) {
  out->set_name(info.name);
  out->set_architecture(info.architecture);
  out->set_variant(info.variant);
  out->set_details(info.details);
  out->set_layers(info.layers);
  out->set_width(static_cast<int32_t>(info.width));
  out->set_heads(info.heads);
  out->set_key_value_heads(info.key_value_heads);
  out->set_context_length(static_cast<int32_t>(info.context_length));
  out->set_vocabulary_size(static_cast<int32_t>(info.vocabulary_size));
  out->set_dtype(ToProto(info.dtype));
  out->set_device(info.device);
  out->set_fingerprint(info.fingerprint);
  out->set_parameters(info.parameters);
  DescribeReplicas(snapshot, out);
  DescribeTokenizer(tokenizers, out);
  out->set_evaluates(info.no_logits.empty());
}

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListModelsRequest& /*request*/,
                        v1::ListModelsResponse* out) {
    const EngineSnapshot snapshot = engine_->Snapshot();
    for (const Model* model : engine_->models()) Describe(model->info(), snapshot, tokenizers_, out->add_models());
    return absl::OkStatus();
  };
  return AnswerCall<v1::ListModelsRequest, v1::ListModelsResponse>(
      caller_, context, "/hookline.v1.ModelService/ListModels", *request, response, fill);
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModel(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::GetModelRequest& get,
                        v1::Model* found) -> absl::Status {
    ASSIGN_OR_RETURN(const Model* model, engine_->FindModel(get.name()));
    Describe(model->info(), engine_->Snapshot(), tokenizers_, found);
    for (const HookPoint& hook_point : model->hook_points().all()) {
      v1::HookPoint& out = *found->add_hook_points();
      out.set_name(hook_point.name);
      out.set_width(static_cast<int32_t>(hook_point.width));
      out.set_layer(hook_point.layer);
      out.set_description(hook_point.description);
      out.set_heads(hook_point.heads);
      out.set_observation(hook_point.observation);
    }
    for (auto& [alias, index] : AliasesOf(model->hook_points(), model->info().architecture).names) {
      found->mutable_hook_points(index)->add_aliases(std::move(alias));
    }
    return absl::OkStatus();
  };
  return AnswerCall<v1::GetModelRequest, v1::Model>(caller_, context, "/hookline.v1.ModelService/GetModel", *request,
                                                    response, fill);
}

}  // namespace hookline
