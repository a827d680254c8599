// The proto DictionaryService: what dictionaries stand beside the engine's models.
#ifndef HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_

#include "hookline/v1/dictionary_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/caller.h"

namespace hookline {

// Raw, so that a request's size is known before it is parsed (plain_call.h).
using RawDictionaryService = v1::DictionaryService::WithRawCallbackMethod_ListDictionaries<
    v1::DictionaryService::WithRawCallbackMethod_GetDictionary<v1::DictionaryService::Service>>;

class DictionaryServiceImpl final : public RawDictionaryService {
 public:
  // `engine` must outlive the server that this service is registered with.
  DictionaryServiceImpl(const CallerCheck& caller, const Engine* engine) : caller_(caller), engine_(engine) {}

  grpc::ServerUnaryReactor* ListDictionaries(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetDictionary(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  const CallerCheck caller_;
  const Engine* const engine_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
