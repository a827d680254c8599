// Requests for scores and their answers between the proto and the engine's plain C++.
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
// tokens than `limits`. Everything else is the engine's to check.
absl::StatusOr<ScoreRequest> ParseScoreRequest(grpc::ByteBuffer message, const TokenLimits& limits);

// A message of Substitute's input: the request or an answer. The same errors, and INVALID_ARGUMENT naming the field
// where it holds neither.
using SubstituteMessage = std::variant<ScoreRequest, RowsAnswer>;
absl::StatusOr<SubstituteMessage> ParseSubstituteRequest(grpc::ByteBuffer message, const TokenLimits& limits);

v1::ScoreResponse ToProto(const ScoreStarted& started);
// The score without its rows.
v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoredSequence& scored);
// Rows of the plan's hook point `hook_point` from `first_position` on, as many as a message takes. At least one.
v1::ScoreResponse RowsToProto(const ScorePlan& plan, const ScoredSequence& scored, size_t hook_point,
                              int64_t first_position);
// Rows that the client is asked for from `first_position` on, as many as a message takes. At least one.
v1::ScoreResponse AskedToProto(const ScorePlan& plan, const RowsAsked& asked, int64_t first_position);
v1::ScoreResponse ToProto(const ScorePlan& plan, const ScoreEnded& ended);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_SCORE_CONVERSION_H_
