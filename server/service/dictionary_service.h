// The proto DictionaryService in front of the engine.
#ifndef HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_

#include "hookline/v1/dictionary_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/service/auth/caller.h"
#include "server/service/task_threads.h"

namespace hookline {

// The methods are raw, so that a request's size is known before it is parsed (plain_call.h).
using RawDictionaryService = v1::DictionaryService::WithRawCallbackMethod_ListDictionaries<
    v1::DictionaryService::WithRawCallbackMethod_GetDictionary<
        v1::DictionaryService::WithRawCallbackMethod_TopActivations<v1::DictionaryService::Service>>>;

class DictionaryServiceImpl final : public RawDictionaryService {
 public:
  // All must outlive the server that this service is registered with. Woken calls continue on `wakes`.
  DictionaryServiceImpl(const CallerCheck& caller, Engine* engine, TaskThreads* wakes)
      : caller_(caller), engine_(engine), wakes_(wakes) {}

  grpc::ServerUnaryReactor* ListDictionaries(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetDictionary(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* TopActivations(grpc::CallbackServerContext* context,
                                                             const grpc::ByteBuffer* request) override;

 private:
  const CallerCheck caller_;
  Engine* const engine_;
  TaskThreads* const wakes_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_DICTIONARY_SERVICE_H_
