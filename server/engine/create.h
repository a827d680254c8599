// Engine::Create with a choice of the transfer to host memory, for tests.
#ifndef HOOKLINE_SERVER_ENGINE_CREATE_H_
#define HOOKLINE_SERVER_ENGINE_CREATE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/dataset/dataset.h"
#include "server/engine/engine.h"
#include "server/model/served_model.h"
#include "server/model/transfer.h"

namespace hookline {

// `devices` are those of a replica's stages.
using TransferFactory =
    std::function<absl::StatusOr<std::unique_ptr<Transfer>>(const std::vector<std::string>& devices)>;

// Errors are those of Engine::Create and of `make_transfer`, which is called twice for each executor: for its thread
// and for its copier's.
absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(
    const EngineOptions& options, std::vector<ServedModel> models, std::vector<std::unique_ptr<const Dataset>> datasets,
    const TransferFactory& make_transfer, std::function<void(absl::Status)> on_lost = [](const absl::Status&) {});

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_CREATE_H_
