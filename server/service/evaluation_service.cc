#include "server/service/evaluation_service.h"

#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/status.h"
#include "server/service/exceptions.h"
#include "server/service/score_call.h"
#include "server/service/wire/score_conversion.h"

namespace hookline {
namespace {

class UnaryScoreCall final : public ScoreCall<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  UnaryScoreCall(TaskThreads* threads, TextRequests* texts) : ScoreCall("Score", threads), texts_(texts) {}

  void Begin(Engine& engine, const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& message) {
    if (!client.ok()) return Refuse(client.status());
    absl::Status status = CatchExceptions("Score", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(ScoreRequest request, ParseScoreRequest(message, engine.options().token_limits()));
      if (!std::holds_alternative<TextSource>(request.source)) {
        return Start(engine, client->identity, std::move(request));
      }
      // Texts wait in the form in which they came (TextRequests::threads).
      PostOn(&texts_->threads(), [this, &engine, identity = client->identity, message] {
        absl::Status status = StartWithText(engine, identity, message);
        if (!status.ok()) Refuse(std::move(status));
      });
      return absl::OkStatus();
    });
    if (!status.ok()) return Refuse(std::move(status));
    Advance();
  }

 private:
  absl::Status StartWithText(Engine& engine, const ClientIdentity& client, const grpc::ByteBuffer& message) {
    ASSIGN_OR_RETURN(ScoreRequest request, ParseScoreRequest(message, engine.options().token_limits()));
    ASSIGN_OR_RETURN(request.source, texts_->Encode(request.model, std::get<TextSource>(request.source)));
    return Start(engine, client, std::move(request));
  }

  TextRequests* const texts_;
};

// One read is in flight at a time, so HandleRead runs on one thread at a time. The next message is read when the one
// before has been taken.
class SubstituteCall final : public ScoreCall<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>> {
 public:
  SubstituteCall(TaskThreads* threads, Engine& engine, TextRequests* texts, absl::StatusOr<AuthClient> client)
      : ScoreCall("Substitute", threads), engine_(engine), texts_(texts), client_(std::move(client)) {}

  void Begin() {
    if (!client_.ok()) return Refuse(client_.status());
    StartRead(&input_);
  }

  void OnReadDone(bool ok) override {
    Guard([this, ok] { HandleRead(ok); });
  }

 private:
  void HandleRead(bool ok) {
    const std::shared_ptr<Scoring> running = scoring();
    if (!ok) {
      if (running != nullptr) return running->FinishAnswers();
      return Refuse(FirstMessageMissing("the stream ended"));
    }
    if (running != nullptr) return AddAnswer(*running);
    auto message = ParseSubstituteRequest(input_, engine_.options().token_limits());
    if (!message.ok()) return Refuse(message.status());
    auto* const request = std::get_if<ScoreRequest>(&*message);
    if (request == nullptr) return Refuse(FirstMessageMissing("it holds `answer`"));
    if (!std::holds_alternative<TextSource>(request->source)) return Run(std::move(*request));
    // Texts wait in the form in which they came (TextRequests::threads).
    PostOn(&texts_->threads(), [this] {
      auto again = ParseSubstituteRequest(input_, engine_.options().token_limits());
      if (!again.ok()) return Refuse(again.status());
      ScoreRequest& request = std::get<ScoreRequest>(*again);
      absl::StatusOr<TokenBatch> tokens = texts_->Encode(request.model, std::get<TextSource>(request.source));
      if (!tokens.ok()) return Refuse(tokens.status());
      request.source = *std::move(tokens);
      Run(std::move(request));
    });
  }

  static absl::Status FirstMessageMissing(absl::string_view instead) {
    return InvalidField("request", absl::StrCat("must be the first message of the stream; ", instead));
  }

  void Run(ScoreRequest request) {
    absl::Status status = Start(engine_, client_->identity, std::move(request));
    if (!status.ok()) return Refuse(std::move(status));
    ReadNext();
    Advance();
  }

  void AddAnswer(Scoring& running) {
    auto message = ParseSubstituteRequest(input_, engine_.options().token_limits());
    if (!message.ok()) return Drop(running, message.status());
    auto* const answer = std::get_if<RowsAnswer>(&*message);
    if (answer == nullptr) {
      return Drop(running, InvalidField("request", "is accepted as the first message only; this one must be `answer`"));
    }
    // An error ends the scoring, and so the call.
    if (running.Answer(*answer).ok()) ReadNext();
  }

  // Cancels the waiting pass at once, since the call ends only when its client has read what is being written.
  void Drop(Scoring& running, absl::Status status) {
    running.Cancel();
    Refuse(std::move(status));
  }

  void ReadNext() {
    absl::MutexLock lock(&mutex_);
    if (!finished()) StartRead(&input_);
  }

  Engine& engine_;
  TextRequests* const texts_;
  const absl::StatusOr<AuthClient> client_;
  // gRPC uses this while a read is in flight, otherwise HandleRead does.
  grpc::ByteBuffer input_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* EvaluationServiceImpl::Score(grpc::CallbackServerContext* context,
                                                                         const grpc::ByteBuffer* request) {
  auto call = std::make_shared<UnaryScoreCall>(wakes_, texts_);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.EvaluationService/Score", &record);
  call->Keep(context, std::move(record));
  call->Begin(*engine_, client, *request);
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* EvaluationServiceImpl::Substitute(
    grpc::CallbackServerContext* context) {
  CallRecord record;
  absl::StatusOr<AuthClient> client = caller_.Authorize(*context, "/hookline.v1.EvaluationService/Substitute", &record);
  auto call = std::make_shared<SubstituteCall>(wakes_, *engine_, texts_, std::move(client));
  call->Keep(context, std::move(record));
  call->Begin();
  return call.get();
}

}  // namespace hookline
