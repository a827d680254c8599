#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

struct VerifyFlags {
  std::string name;
  bool quiet = false;
};

absl::Status Run(const VerifyFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  const auto stub = v1::RecordingService::NewStub(client->channel());
  v1::GetRecordingRequest get_request;
  get_request.set_name(flags.name);
  grpc::ClientContext get_context;
  v1::Recording recording;
  absl::Status found = client::FromGrpc(stub->GetRecording(&get_context, get_request, &recording));
  if (!found.ok()) return ExplainUnavailable(found, server.address);

  v1::VerifyRecordingRequest request;
  request.set_name(flags.name);
  grpc::ClientContext context;
  Interrupt::Listener listener(&interrupt, [&context] { context.TryCancel(); });
  const auto reader = stub->VerifyRecording(&context, request);
  v1::VerifyRecordingResponse response;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle(), "shards");
    while (reader->Read(&response)) {
      progress.SetTotal(recording.shard_count());
      progress.Set(response.shards(), response.bytes());
    }
  }
  const absl::Status status = client::FromGrpc(reader->Finish());
  if (interrupt.came()) return absl::CancelledError("interrupted");
  if (!status.ok()) return ExplainUnavailable(status, server.address);
  if (!response.done()) return absl::InternalError("the server ended the call without a result");
  for (const v1::DamagedShard& shard : response.damaged()) {
    std::fputs(absl::StrCat(Escaped(shard.file()), ": ", Escaped(shard.error()), "\n").c_str(), stdout);
  }
  if (response.damaged_size() > 0) {
    return absl::DataLossError(absl::StrCat(flags.name, ": ", response.damaged_size(), " of ",
                                            Count(recording.shard_count(), "shard"), " damaged; record it again"));
  }
  std::fputs(absl::StrCat(Escaped(flags.name), ": ", Count(response.shards(), "shard"), ", ",
                          ShortNumber(static_cast<double>(response.bytes())), "B, every byte matches its checksum\n")
                 .c_str(),
             stdout);
  return absl::OkStatus();
}

}  // namespace

void AddVerifyCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("verify", "Makes the server compare a recording with its checksums");
  command->footer("The exit code is 1 if something is damaged; standard output names the damaged shards.");
  auto flags = std::make_shared<VerifyFlags>();
  AddServerOption(*command, invocation);
  command->add_option("name", flags->name, "The recording")->type_name("NAME")->required();
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress");
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
