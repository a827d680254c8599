// The proto DictionaryService: what dictionaries stand beside the engine's models.
#ifndef HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_

#include "hookline/v1/dictionary_service.grpc.pb.h"
#include "server/engine/engine.h"

namespace hookline {

class DictionaryServiceImpl final : public v1::DictionaryService::CallbackService {
 public:
  // `engine` must outlive the server that this service is registered with.
  explicit DictionaryServiceImpl(const Engine* engine) : engine_(engine) {}

  grpc::ServerUnaryReactor* ListDictionaries(grpc::CallbackServerContext* context,
                                             const v1::ListDictionariesRequest* request,
                                             v1::ListDictionariesResponse* response) override;
  grpc::ServerUnaryReactor* GetDictionary(grpc::CallbackServerContext* context, const v1::GetDictionaryRequest* request,
                                          v1::Dictionary* response) override;

 private:
  const Engine* const engine_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
