// The way to host memory of a model whose stages lie on several devices: each tap's rows leave from the device that
// they are on.
#ifndef HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_
#define HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/transfer.h"

namespace hookline {

// The transfer of a model on `devices`, at least one, each once; what is uploaded goes to the first. Errors as
// MakeTransfer.
absl::StatusOr<std::unique_ptr<Transfer>> MakeStagesTransfer(const std::vector<std::string>& devices);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_
