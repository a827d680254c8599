// The proto TokenizerService: texts to token ids and back.
#ifndef HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_

#include "hookline/v1/tokenizer_service.grpc.pb.h"
#include "server/service/text_requests.h"

namespace hookline {

class TokenizerServiceImpl final : public v1::TokenizerService::CallbackService {
 public:
  // `texts` must outlive the server that this service is registered with.
  explicit TokenizerServiceImpl(TextRequests* texts) : texts_(texts) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  TextRequests* const texts_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_TOKENIZER_SERVICE_H_
