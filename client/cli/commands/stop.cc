#include <cstdint>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

absl::Status Run(int64_t id, const ServerChoice& server) {
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, Connect(server));
  grpc::ClientContext context;
  v1::StopCaptureRequest request;
  request.set_id(id);
  v1::StopCaptureResponse response;
  const grpc::Status status = v1::CaptureService::NewStub(client->channel())->StopCapture(&context, request, &response);
  if (!status.ok()) return ExplainUnavailable(client::FromGrpc(status), server.address);
  std::fputs(absl::StrCat("capture ", id, " is ending\n").c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddStopCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("stop", "Ends a capture, by the number that `hookline top` shows");
  auto id = std::make_shared<int64_t>(0);
  AddServerOption(*command, invocation);
  command->add_option("id", *id, "The capture's number")->required()->type_name("ID");
  command->callback([id, &invocation] { invocation.run = [id, &invocation] { return Run(*id, invocation.server); }; });
}

}  // namespace hookline::cli
