#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/recording_text.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(Parts are recordings of consecutive sequences of one dataset, in any order. NAME is a recording of this server;
FOLDER/NAME is one of another server that shares its --recordings-dir (each has its own --recordings-folder); '*/NAME'
is those of all folders. Parts must be complete, have the same weights, hook points, dtype and selection, and follow
each other without a gap. Files are linked, so the merged recording takes no space and the parts can be removed
afterwards; every byte is compared with its checksum. The same command, run again, finds the recording that it made.

Example, with servers a and b that run with --recordings-dir /shared --recordings-folder a (and b):
  hookline persist run1-part --part 0/2 --dataset pile --sequence-length 1024 --hook-points 'blocks.*.hook_resid_post' --server a:7471
  hookline persist run1-part --part 1/2 --dataset pile --sequence-length 1024 --hook-points 'blocks.*.hook_resid_post' --server b:7471
  hookline merge run1 '*/run1-part' --server a:7471)";

struct MergeFlags {
  std::string name;
  std::vector<std::string> parts;
  bool quiet = false;
};

absl::Status Run(const MergeFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  v1::MergeRecordingsRequest request;
  request.set_name(flags.name);
  for (const std::string& part : flags.parts) request.add_parts(part);
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  grpc::ClientContext context;
  Interrupt::Listener listener(&interrupt, [&context] { context.TryCancel(); });
  const auto reader = v1::RecordingService::NewStub(client->channel())->MergeRecordings(&context, request);
  v1::MergeRecordingsResponse response;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle(), "shards");
    while (reader->Read(&response)) {
      progress.SetTotal(response.total_shards());
      progress.Set(response.shards(), response.bytes());
    }
  }
  const absl::Status status = client::FromGrpc(reader->Finish());
  if (interrupt.came()) {
    return absl::CancelledError(absl::StrCat("interrupted; the server removes the incomplete ", flags.name));
  }
  if (!status.ok()) return ExplainUnavailable(status, server.address);
  if (!response.has_recording()) return absl::InternalError("the server ended the call without the recording");
  std::fputs(RecordingText(response.recording()).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddMergeCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("merge", "Makes one recording from those that several servers wrote");
  command->footer(kFooter);
  auto flags = std::make_shared<MergeFlags>();
  AddServerOption(*command, invocation);
  command->add_option("name", flags->name, "The recording to make")->type_name("NAME")->required();
  command->add_option("parts", flags->parts, "The recordings to merge")->type_name("PART")->required();
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress");
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
