#include "server/service/dictionary_service.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/service/exceptions.h"

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
                                                                  const v1::ListDictionariesRequest* /*request*/,
                                                                  v1::ListDictionariesResponse* response) {
  return AnswerCall(context, "ListDictionaries", [&] {
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) Describe(*model, one, response->add_dictionaries());
    }
  });
}

grpc::ServerUnaryReactor* DictionaryServiceImpl::GetDictionary(grpc::CallbackServerContext* context,
                                                               const v1::GetDictionaryRequest* request,
                                                               v1::Dictionary* response) {
  return AnswerCall(context, "GetDictionary", [&]() -> absl::Status {
    std::vector<std::string> names;
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) {
        names.push_back(one.info.name);
        if (one.info.name != request->name()) continue;
        Describe(*model, one, response);
        return absl::OkStatus();
      }
    }
    return absl::NotFoundError(absl::StrCat("name: no dictionary \"", request->name(), "\"; this server has ",
                                            names.empty() ? "none" : absl::StrJoin(names, ", ")));
  });
}

}  // namespace hookline
