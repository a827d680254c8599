// A request for scores as the engine takes it: the proto ScoreRequest in plain C++, field by field. Engine::PlanScore
// validates it; its errors name fields by their proto paths.
#ifndef HOOKLINE_SERVER_CAPTURE_SCORE_REQUEST_H_
#define HOOKLINE_SERVER_CAPTURE_SCORE_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/capture/request.h"

namespace hookline {

struct ZeroRows {};

struct MeanRows {
  std::vector<float> vector;  // empty: taken over the batch
};

struct AddVector {
  std::vector<float> vector;
  double scale = 1;
};

struct ScaleRows {
  double factor = 0;
};

struct ProjectOut {
  std::vector<float> direction;
};

struct SetRows {
  std::vector<std::vector<float>> rows;
};

struct DictionaryRows {
  std::string name;
};

struct LatentEditRequest {
  int64_t latent = 0;
  // A value to clamp to, a factor, or zero. monostate: none was given, which is an error.
  std::variant<std::monostate, double, ScaleRows, ZeroRows> operation;
};

struct EditLatents {
  std::string dictionary;
  std::vector<LatentEditRequest> edits;
  bool keep_error = false;
};

// The client answers with rows while the pass waits.
struct ClientRows {};

struct InterventionRequest {
  std::string hook_point;
  // monostate: none was given, which is an error.
  std::variant<std::monostate, ZeroRows, MeanRows, AddVector, ScaleRows, ProjectOut, SetRows, DictionaryRows,
               EditLatents, ClientRows>
      operation;
  std::vector<int64_t> positions;
  std::vector<uint32_t> ignore_token_ids;
  std::optional<int64_t> head;
};

struct VariantRequest {
  std::string name;
  std::vector<InterventionRequest> interventions;
};

struct ScoreRequest {
  std::string model;
  // monostate: none was given, which is an error. The service replaces a TextSource by its tokens.
  std::variant<std::monostate, TokenBatch, DatasetSource, TextSource> source;
  std::vector<VariantRequest> variants;
  bool per_token_loss = false;
  bool kl = false;
  int64_t top_logits = 0;
  std::vector<uint32_t> log_probability_token_ids;
  std::vector<std::string> hook_points;
  bool rows_only = false;
  bool loss_recovered = false;
  // The call is Substitute, in which the client can answer rows and therefore must.
  bool client_answers = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_CAPTURE_SCORE_REQUEST_H_
