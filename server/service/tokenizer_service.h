// The proto TokenizerService: texts to token ids and back.
#ifndef HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_

#include "hookline/v1/tokenizer_service.grpc.pb.h"
#include "server/service/auth/caller.h"
#include "server/service/text_requests.h"

namespace hookline {

// The methods are raw, so that a request's size is known before it is parsed (plain_call.h).
using RawTokenizerService = v1::TokenizerService::WithRawCallbackMethod_Tokenize<
    v1::TokenizerService::WithRawCallbackMethod_Detokenize<v1::TokenizerService::Service>>;

class TokenizerServiceImpl final : public RawTokenizerService {
 public:
  // `texts` must outlive the server that this service is registered with.
  TokenizerServiceImpl(const CallerCheck& caller, TextRequests* texts) : caller_(caller), texts_(texts) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  const CallerCheck caller_;
  TextRequests* const texts_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_
