#include "server/service/evaluation_service.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "server/base/status.h"
#include "server/service/exceptions.h"
#include "server/service/plain_call.h"
#include "server/service/stream_call.h"
#include "server/service/wire/score_conversion.h"

namespace hookline {
namespace {

// Streams the events of one scoring. A client that does not read leaves the rest with the engine, which then runs no
// more for it.
class ScoreCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  ScoreCall(TaskThreads* threads, TextRequests* texts) : StreamCall("Score", threads), texts_(texts) {}

  void Begin(Engine& engine, const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& message) {
    if (!client.ok()) return Refuse(client.status());
    absl::Status status = CatchExceptions("Score", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(ScoreRequest request, ParseScoreRequest(message, engine.options().token_limits()));
      if (!std::holds_alternative<TextSource>(request.source)) {
        return Start(engine, client->identity, std::move(request));
      }
      // Texts wait as they came (TextRequests::threads).
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

  absl::Status Start(Engine& engine, const ClientIdentity& client, ScoreRequest request) {
    ASSIGN_OR_RETURN(ScorePlan plan, engine.PlanScore(std::move(request)));
    ASSIGN_OR_RETURN(std::shared_ptr<Scoring> scoring, engine.StartScore(std::move(plan), client, [this] { Wake(); }));
    absl::MutexLock lock(&mutex_);
    scoring_ = std::move(scoring);
    return absl::OkStatus();
  }

  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (scoring_ == nullptr) return Step::Wait();
    if (scored_.has_value()) {
      if (next_hook_point_ < plan_->hook_points.size()) return Step::Write(Serialized(NextRows()));
      scored_.reset();
    }
    std::optional<ScoreEvent> event = scoring_->Next();
    if (!event.has_value()) return Step::Wait();
    if (const auto* started = std::get_if<ScoreStarted>(&*event)) {
      plan_ = started->plan;
      return Step::Write(Serialized(ToProto(*started)));
    }
    if (auto* scored = std::get_if<ScoredSequence>(&*event)) {
      scored_ = std::move(*scored);
      next_hook_point_ = 0;
      next_position_ = 0;
      return Step::Write(Serialized(ToProto(*plan_, *scored_)));
    }
    const ScoreEnded& ended = std::get<ScoreEnded>(*event);
    if (!ended.status.ok()) return Step::Finish(ended.status);
    return Step::WriteAndFinish(Serialized(ToProto(*plan_, ended)), absl::OkStatus());
  }

  v1::ScoreResponse NextRows() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::ScoreResponse message = RowsToProto(*plan_, *scored_, next_hook_point_, next_position_);
    record().AddRows(message.rows().rows());
    next_position_ += message.rows().rows();
    if (next_position_ == scored_->tokens) {
      next_position_ = 0;
      ++next_hook_point_;
    }
    return message;
  }

  void Abandoned() override {
    std::shared_ptr<Scoring> scoring;
    {
      absl::MutexLock lock(&mutex_);
      scoring = scoring_;
    }
    if (scoring != nullptr) scoring->Cancel();
  }

  void Release() override {
    std::shared_ptr<Scoring> scoring;
    {
      absl::MutexLock lock(&mutex_);
      scoring = std::move(scoring_);
      scored_.reset();
    }
    if (scoring != nullptr) scoring->Cancel();
  }

  TextRequests* const texts_;
  std::shared_ptr<Scoring> scoring_ ABSL_GUARDED_BY(mutex_);  // null before Begin
  std::shared_ptr<const ScorePlan> plan_ ABSL_GUARDED_BY(mutex_);
  // The score that was written last, whose rows follow.
  std::optional<ScoredSequence> scored_ ABSL_GUARDED_BY(mutex_);
  size_t next_hook_point_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_position_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* EvaluationServiceImpl::Score(grpc::CallbackServerContext* context,
                                                                         const grpc::ByteBuffer* request) {
  auto call = std::make_shared<ScoreCall>(wakes_, texts_);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.EvaluationService/Score", &record);
  call->Keep(context, std::move(record));
  call->Begin(*engine_, client, *request);
  return call.get();
}

}  // namespace hookline
