// Transfers rows to host memory for a model whose stages lie on several devices: the rows of each tap leave from their
// own device.
#ifndef HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_
#define HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/transfer.h"

namespace hookline {

// Makes the transfer of a model on `devices`, at least one, each once. Uploads go to the first device. Errors:
// those of MakeTransfer.
absl::StatusOr<std::unique_ptr<Transfer>> MakeStagesTransfer(const std::vector<std::string>& devices);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_STAGES_TRANSFER_H_
