// Converts requests for scores and their answers between the proto and the engine's plain C++.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_SCORE_CONVERSION_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_SCORE_CONVERSION_H_

#include <cstdint>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/support/byte_buffer.h"
#include "hookline/v1/evaluation_service.pb.h"
#include "server/capture/limits.h"
#include "server/capture/score_plan.h"
#include "server/capture/score_request.h"
#include "server/capture/scoring.h"

namespace hookline {

// Parses the message. INVALID_ARGUMENT: it is not a ScoreRequest; RESOURCE_EXHAUSTED: it is too large, or has more
// tokens than `limits` allows. The engine checks everything else.
absl::StatusOr<ScoreRequest> ParseScoreRequest(grpc::ByteBuffer message, const TokenLimits& limits);

// Parses a message of Substitute's input: the request or an answer. Returns the same errors, and INVALID_ARGUMENT,
// naming the field, if it holds neither.
using SubstituteMessage = std::variant<ScoreRequest, RowsAnswer>;
absl::StatusOr<SubstituteMessage> ParseSubstituteRequest(grpc::ByteBuffer message, const TokenLimits& limits);

v1::ScoreResponse ToProto(const ScoreStarted& started);
// Returns the score without its rows.
v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoredSequence& scored);
// Returns rows of the plan's hook point `hook_point` from `first_position` on, as many as a message takes, at least 1.
v1::ScoreResponse RowsToProto(const ScorePlan& plan, const ScoredSequence& scored, size_t hook_point,
                              int64_t first_position);
// Returns rows that the client is asked for from `first_position` on, as many as a message takes, at least 1.
v1::ScoreResponse AskedToProto(const ScorePlan& plan, const RowsAsked& asked, int64_t first_position);
v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoreEnded& ended);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_SCORE_CONVERSION_H_
