#include "server/service/dictionary_service.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/service/plain_call.h"

namespace hookline {
namespace {

void Describe(const Model& model, const AttachedDictionary& dictionary, v1::Dictionary* out) {
  const DictionaryInfo& info = dictionary.info;
  out->set_name(info.name);
  out->set_model(model.info().name);
  out->set_hook_point(model.hook_points()[dictionary.hook_point].name);
  out->set_architecture(info.architecture);
  out->set_format(info.format);
  out->set_width(static_cast<int32_t>(info.width));
  out->set_latents(static_cast<int32_t>(info.latents));
  out->set_max_active(static_cast<int32_t>(info.max_active));
  out->set_fingerprint(info.fingerprint);
  for (int i = 0; i < kDictionaryPoints; ++i) {
    out->add_hook_points(model.hook_points()[dictionary.first_point + i].name);
  }
}

}  // namespace

grpc::ServerUnaryReactor* DictionaryServiceImpl::ListDictionaries(grpc::CallbackServerContext* context,
                                                                  const grpc::ByteBuffer* request,
                                                                  grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListDictionariesRequest& /*request*/,
                        v1::ListDictionariesResponse* out) {
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) Describe(*model, one, out->add_dictionaries());
    }
    return absl::OkStatus();
  };
  return AnswerCall<v1::ListDictionariesRequest, v1::ListDictionariesResponse>(
      caller_, context, "/hookline.v1.DictionaryService/ListDictionaries", *request, response, fill);
}

grpc::ServerUnaryReactor* DictionaryServiceImpl::GetDictionary(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* request,
                                                               grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::GetDictionaryRequest& get,
                        v1::Dictionary* found) -> absl::Status {
    std::vector<std::string> names;
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) {
        names.push_back(one.info.name);
        if (one.info.name != get.name()) continue;
        Describe(*model, one, found);
        return absl::OkStatus();
      }
    }
    return absl::NotFoundError(absl::StrCat("name: no dictionary \"", get.name(), "\"; this server has ",
                                            names.empty() ? "none" : absl::StrJoin(names, ", ")));
  };
  return AnswerCall<v1::GetDictionaryRequest, v1::Dictionary>(
      caller_, context, "/hookline.v1.DictionaryService/GetDictionary", *request, response, fill);
}

}  // namespace hookline
