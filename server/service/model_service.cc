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

// Llama 3 has 256.
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

// All but the hook points.
void Describe(const ModelInfo& info, const ModelTokenizers* tokenizers, v1::Model* out) {
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
  DescribeTokenizer(tokenizers, out);
  out->set_evaluates(info.no_logits.empty());
}

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListModelsRequest& /*request*/,
                        v1::ListModelsResponse* out) {
    for (const Model* model : engine_->models()) Describe(model->info(), tokenizers_, out->add_models());
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
    Describe(model->info(), tokenizers_, found);
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
