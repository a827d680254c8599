// The engine: admits captures, lets their sequences share forward passes, and hands the rows to their sinks.
//
//   ASSIGN_OR_RETURN(CapturePlan plan, engine->Plan(std::move(request)));
//   ASSIGN_OR_RETURN(std::shared_ptr<Capture> capture, engine->Start(std::move(plan), client, callbacks));
#ifndef HOOKLINE_SERVER_ENGINE_ENGINE_H_
#define HOOKLINE_SERVER_ENGINE_ENGINE_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/capture_status.h"
#include "server/capture/client_identity.h"
#include "server/capture/plan.h"
#include "server/capture/request.h"
#include "server/capture/score_plan.h"
#include "server/capture/scoring.h"
#include "server/capture/top_activations_plan.h"
#include "server/dataset/dataset.h"
#include "server/engine/options.h"
#include "server/engine/snapshot.h"
#include "server/model/model.h"
#include "server/model/served_model.h"

namespace hookline {

// Thread-safe.
class Engine {
 public:
  // INVALID_ARGUMENT: options that contradict each other; RESOURCE_EXHAUSTED: no memory for the slabs, or for a full
  // batch on a device, which is tried. A dataset may hold ids that a model lacks; a capture that needs both is refused.
  // `models` may be empty. `on_lost` is called once, from one of the engine's threads, when a model has lost its last
  // replica. By then all captures have ended with UNAVAILABLE, and no new ones begin; only ending the process helps.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineOptions& options, std::vector<ServedModel> models,
      std::vector<std::unique_ptr<const Dataset>> datasets,
      std::function<void(absl::Status)> on_lost = [](const absl::Status&) {});

  // Cancels running captures and joins the engine's threads. Captures, and chunks taken from them, must be destroyed
  // before.
  virtual ~Engine() = default;

  virtual const EngineOptions& options() const = 0;

  // The first replica of each model, in the order given to Create. They live as long as the engine.
  virtual std::vector<const Model*> models() const = 0;

  // Returns the model of that name; "" names the only one. Errors list the names: NOT_FOUND or, if "" could name
  // several, INVALID_ARGUMENT.
  virtual absl::StatusOr<const Model*> FindModel(absl::string_view name) const = 0;

  // The datasets, in the order given to Create.
  virtual std::vector<const Dataset*> datasets() const = 0;

  // NOT_FOUND lists the names.
  virtual absl::StatusOr<const Dataset*> FindDataset(absl::string_view name) const = 0;

  // Checks the request and plans it, without starting it. Errors are those of the proto CaptureService, except those
  // that depend on other captures.
  virtual absl::StatusOr<CapturePlan> Plan(CaptureRequest request) const = 0;

  // Estimates the planned capture. The time is absent until the model has run its first forward pass.
  virtual CaptureEstimate Estimate(const CapturePlan& plan) const = 0;

  // Admits or queues the planned capture within the client's quotas. RESOURCE_EXHAUSTED: too many captures;
  // FAILED_PRECONDITION: a feed of that name has another definition; UNAVAILABLE: the server is shutting down.
  virtual absl::StatusOr<std::shared_ptr<Capture>> Start(CapturePlan plan, const ClientIdentity& client,
                                                         CaptureCallbacks callbacks) = 0;

  // Returns the captures that run or wait, ordered by id: all of them for an administrator, otherwise those
  // of `client`.
  virtual std::vector<CaptureStatus> ListCaptures(const ClientIdentity& client) const = 0;

  // Ends a capture with CANCELLED. NOT_FOUND unless `client` may see it in ListCaptures.
  virtual absl::Status StopCapture(int64_t id, const ClientIdentity& client) = 0;

  // Checks and plans a request for scores. Errors are those of the proto EvaluationService, except those that depend on
  // other clients.
  virtual absl::StatusOr<ScorePlan> PlanScore(ScoreRequest request) const = 0;

  // Runs the planned scoring among the captures. A client may have as many scorings and searches as running captures.
  // Scoring::Next says when `on_ready` is called. Errors are those of Start.
  virtual absl::StatusOr<std::shared_ptr<Scoring>> StartScore(ScorePlan plan, const ClientIdentity& client,
                                                              std::function<void()> on_ready) = 0;

  // Checks and plans a search for the tokens that excite a dictionary's latents most. Errors are those of the proto
  // DictionaryService, except those that depend on other clients.
  virtual absl::StatusOr<TopActivationsPlan> PlanTopActivations(TopActivationsRequest request) const = 0;

  // Runs the planned search, with the limits and errors of StartScore. TopActivationsSearch::Next says when `on_ready`
  // is called.
  virtual absl::StatusOr<std::shared_ptr<TopActivationsSearch>> StartTopActivations(TopActivationsPlan plan,
                                                                                    const ClientIdentity& client,
                                                                                    std::function<void()> on_ready) = 0;

  virtual EngineSnapshot Snapshot() const = 0;

  // Refuses new captures (UNAVAILABLE), lets running ones end until `deadline`, then ends the rest with a summary
  // (kShuttingDown, UNAVAILABLE). Returns when every capture has ended, its sink has consumed the final event or been
  // destroyed, and every slab has come back; or a second after the deadline.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_ENGINE_H_
