#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/recording_text.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

struct RecordingsFlags {
  std::string name;
  bool stop = false;
  bool remove = false;
};

absl::Status List(v1::RecordingService::Stub& stub) {
  std::vector<std::vector<std::string>> rows = {
      {"recording", "state", "rows", "hook points", "dtype", "bytes", "model", "fingerprint"}};
  v1::ListRecordingsRequest request;
  request.set_page_size(1000);
  v1::ListRecordingsResponse response;
  do {
    grpc::ClientContext context;
    RETURN_IF_ERROR(client::FromGrpc(stub.ListRecordings(&context, request, &response)));
    for (const v1::Recording& recording : response.recordings()) {
      rows.push_back({recording.name(), StateName(recording.state()), WithCommas(recording.rows()),
                      WithCommas(recording.hook_point_count()), DtypeName(recording.dtype()),
                      ShortNumber(static_cast<double>(recording.bytes())) + "B", recording.model(),
                      recording.fingerprint()});
    }
    request.set_page_token(response.next_page_token());
  } while (!response.next_page_token().empty());
  std::fputs(Table(rows).c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Run(const RecordingsFlags& flags, v1::RecordingService::Stub& stub) {
  if (flags.name.empty()) return List(stub);
  grpc::ClientContext context;
  if (flags.remove) {
    v1::DeleteRecordingRequest request;
    request.set_name(flags.name);
    v1::DeleteRecordingResponse response;
    RETURN_IF_ERROR(client::FromGrpc(stub.DeleteRecording(&context, request, &response)));
    std::fputs(absl::StrCat(Escaped(flags.name), " was removed; ", ShortNumber(static_cast<double>(response.bytes())),
                            "B freed\n")
                   .c_str(),
               stdout);
    return absl::OkStatus();
  }
  v1::Recording recording;
  if (flags.stop) {
    v1::StopRecordingRequest request;
    request.set_name(flags.name);
    RETURN_IF_ERROR(client::FromGrpc(stub.StopRecording(&context, request, &recording)));
  } else {
    v1::GetRecordingRequest request;
    request.set_name(flags.name);
    RETURN_IF_ERROR(client::FromGrpc(stub.GetRecording(&context, request, &recording)));
  }
  std::fputs(RecordingText(recording).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddRecordingsCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("recordings", "Lists the server's recordings, or shows, stops or removes one");
  auto flags = std::make_shared<RecordingsFlags>();
  AddServerOption(*command, invocation);
  CLI::Option* name = command->add_option("name", flags->name, "The recording to show")->type_name("NAME");
  CLI::Option* stop =
      command->add_flag("--stop", flags->stop, "End it after its last complete rows; persist continues it")
          ->needs(name);
  command->add_flag("--remove", flags->remove, "Remove it and its files")->needs(name)->excludes(stop);
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation]() -> absl::Status {
      ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(invocation.server));
      const auto stub = v1::RecordingService::NewStub(client->channel());
      return ExplainUnavailable(Run(*flags, *stub), invocation.server.address);
    };
  });
}

}  // namespace hookline::cli
