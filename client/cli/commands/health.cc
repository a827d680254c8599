#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cpp/rpc_status.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr absl::Duration kDefaultTimeout = absl::Seconds(5);

absl::Status Run(const std::string& service, double timeout_seconds, const ServerChoice& server) {
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, Connect(server));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(timeout_seconds)));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = grpc::health::v1::Health::NewStub(client->channel())->Check(&context, request, &response);
  if (!status.ok()) return ExplainUnavailable(client::FromGrpc(status), server.address);
  const bool serves = response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  std::fputs(serves ? "serving\n" : "not serving\n", stdout);
  if (serves) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(server.address, " is not serving"));
}

}  // namespace

void AddHealthCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("health", "Asks whether the server is serving; for probes");
  command->footer("Exit codes: 0 it is serving; 1 it is not serving; 2 wrong flags; 3 no server answers.");
  auto service = std::make_shared<std::string>();
  auto timeout = std::make_shared<double>(absl::ToDoubleSeconds(kDefaultTimeout));
  AddServerOption(*command, invocation);
  command->add_option("--service", *service, "One service, for example hookline.v1.CaptureService; default: all")
      ->type_name("NAME");
  command->add_option("--timeout", *timeout, "Seconds to wait for an answer")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->callback([service, timeout, &invocation] {
    invocation.run = [service, timeout, &invocation] { return Run(*service, *timeout, invocation.server); };
  });
}

}  // namespace hookline::cli
