// One call that streams a scoring's events: what Score and Substitute have in common.
#ifndef HOOKLINE_SERVER_SERVICE_SCORE_CALL_H_
#define HOOKLINE_SERVER_SERVICE_SCORE_CALL_H_

#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/base/status.h"
#include "server/engine/engine.h"
#include "server/service/plain_call.h"
#include "server/service/stream_call.h"
#include "server/service/wire/score_conversion.h"

namespace hookline {

// `Reactor` is gRPC's for the method: ServerWriteReactor or ServerBidiReactor of byte buffers. A client that does not
// read leaves the rest with the engine, which then runs no more for it.
template <typename Reactor>
class ScoreCall : public StreamCall<Reactor, grpc::ByteBuffer> {
 protected:
  using Base = StreamCall<Reactor, grpc::ByteBuffer>;
  using Base::mutex_;
  using typename Base::Step;

  ScoreCall(absl::string_view method, TaskThreads* threads) : Base(method, threads) {}

  // Streams the events of the request's scoring, from the next Advance on.
  absl::Status Start(Engine& engine, const ClientIdentity& client, ScoreRequest request) {
    ASSIGN_OR_RETURN(ScorePlan plan, engine.PlanScore(std::move(request)));
    ASSIGN_OR_RETURN(std::shared_ptr<Scoring> scoring,
                     engine.StartScore(std::move(plan), client, [this] { this->Wake(); }));
    absl::MutexLock lock(&mutex_);
    scoring_ = std::move(scoring);
    return absl::OkStatus();
  }

  // Null before Start and after the end.
  std::shared_ptr<Scoring> scoring() const {
    absl::MutexLock lock(&mutex_);
    return scoring_;
  }

 private:
  Step NextStep() final ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (scoring_ == nullptr) return Step::Wait();
    if (asked_.has_value()) return Step::Write(Serialized(NextAsked()));
    if (scored_.has_value()) {
      if (next_hook_point_ < plan_->hook_points.size()) return Step::Write(Serialized(NextRows()));
      scored_.reset();
    }
    std::optional<ScoreEvent> event = scoring_->Next();
    if (!event.has_value()) return Step::Wait();
    next_hook_point_ = 0;
    next_position_ = 0;
    if (const auto* started = std::get_if<ScoreStarted>(&*event)) {
      plan_ = started->plan;
      return Step::Write(Serialized(ToProto(*started)));
    }
    if (auto* asked = std::get_if<RowsAsked>(&*event)) {
      asked_ = std::move(*asked);
      return Step::Write(Serialized(NextAsked()));
    }
    if (auto* scored = std::get_if<ScoredSequence>(&*event)) {
      scored_ = std::move(*scored);
      return Step::Write(Serialized(ToProto(*plan_, *scored_)));
    }
    const ScoreEnded& ended = std::get<ScoreEnded>(*event);
    if (!ended.status.ok()) return Step::Finish(ended.status);
    return Step::WriteAndFinish(Serialized(ToProto(*plan_, ended)), absl::OkStatus());
  }

  v1::ScoreResponse NextAsked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::ScoreResponse message = AskedToProto(*plan_, *asked_, next_position_);
    this->record().AddRows(message.asked().rows());
    next_position_ += message.asked().rows();
    if (next_position_ == static_cast<int64_t>(asked_->token_ids.size())) asked_.reset();
    return message;
  }

  v1::ScoreResponse NextRows() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::ScoreResponse message = RowsToProto(*plan_, *scored_, next_hook_point_, next_position_);
    this->record().AddRows(message.rows().rows());
    next_position_ += message.rows().rows();
    if (next_position_ == scored_->tokens) {
      next_position_ = 0;
      ++next_hook_point_;
    }
    return message;
  }

  void Abandoned() final {
    if (const std::shared_ptr<Scoring> running = scoring(); running != nullptr) running->Cancel();
  }

  void Release() final {
    std::shared_ptr<Scoring> scoring;
    {
      absl::MutexLock lock(&mutex_);
      scoring = std::move(scoring_);
      scored_.reset();
      asked_.reset();
    }
    if (scoring != nullptr) scoring->Cancel();
  }

  std::shared_ptr<Scoring> scoring_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const ScorePlan> plan_ ABSL_GUARDED_BY(mutex_);
  // The score that was written last, whose rows follow.
  std::optional<ScoredSequence> scored_ ABSL_GUARDED_BY(mutex_);
  // Rows of which some are still to be written.
  std::optional<RowsAsked> asked_ ABSL_GUARDED_BY(mutex_);
  size_t next_hook_point_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_position_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SCORE_CALL_H_
