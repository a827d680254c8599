#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/notes.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/progress.h"
#include "client/cli/terminal/recording_text.h"
#include "client/cpp/client.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kFooter[] =
    R"(The server writes the rows; this command shows the progress, and the server continues if the command is
interrupted. The same command, run again, watches a recording that is being made, continues one that ended early, or
describes a complete one.

Example:
  hookline persist pile-resid --hook-points 'blocks.*.hook_resid_post' --dataset pile --sequence-length 1024 \
      --max-activations 10000000 --dtype bfloat16)";

// Half of what a server takes by default in one message (gRPC's 4 MiB), which leaves room for the rest of the request.
constexpr size_t kMaxRequestBytes = size_t{2} << 20;

struct PersistFlags : CaptureRequestFlags {
  std::string name;
  std::string part;  // INDEX/COUNT; empty: all
  bool quiet = false;
};

// Reads INDEX/COUNT. The server checks the numbers.
absl::Status ReadPart(const std::string& text, v1::RecordingPart* part) {
  const std::pair<absl::string_view, absl::string_view> split = absl::StrSplit(text, absl::MaxSplits('/', 1));
  int32_t index;
  int32_t count;
  if (!absl::SimpleAtoi(split.first, &index) || !absl::SimpleAtoi(split.second, &count)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--part: ", Quoted(text), " is not INDEX/COUNT, such as 0/4 for the first of four parts"));
  }
  part->set_index(index);
  part->set_count(count);
  return absl::OkStatus();
}

absl::Status AddTokens(TokenSource& tokens, v1::CaptureRequest& request) {
  size_t bytes = 0;
  while (true) {
    v1::TokenSequence sequence;
    ASSIGN_OR_RETURN(bool more, tokens.Next(&sequence));
    if (!more) return absl::OkStatus();
    bytes += sequence.ByteSizeLong();
    if (bytes > kMaxRequestBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tokens: more than ", kMaxRequestBytes >> 20,
                       " MiB of ids do not fit into one request; record while capturing (hookline capture --record-as "
                       "NAME), or serve the file as a dataset"));
    }
    *request.mutable_tokens()->add_sequences() = std::move(sequence);
  }
}

const char* WhatWasFound(v1::PersistDisposition disposition) {
  switch (disposition) {
    case v1::PERSIST_DISPOSITION_JOINED:
      return "is already being made; watching it";
    case v1::PERSIST_DISPOSITION_CONTINUED:
      return "continues after its last row";
    case v1::PERSIST_DISPOSITION_ALREADY_COMPLETE:
      return "is already complete";
    default:
      return "begins";
  }
}

absl::Status Run(const PersistFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  v1::PersistRequest request;
  request.set_name(flags.name);
  ASSIGN_OR_RETURN(*request.mutable_capture(), MakeCaptureRequest(flags));
  if (!flags.part.empty()) RETURN_IF_ERROR(ReadPart(flags.part, request.mutable_part()));
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, Connect(server));
  AnyServer any({client.get()});
  ASSIGN_OR_RETURN(const std::unique_ptr<TokenSource> tokens, OpenTokens(flags, any, server.address));
  if (tokens != nullptr) RETURN_IF_ERROR(AddTokens(*tokens, *request.mutable_capture()));
  grpc::ClientContext context;
  Interrupt::Listener listener(&interrupt, [&context] { context.TryCancel(); });
  const auto reader = v1::RecordingService::NewStub(client->channel())->Persist(&context, request);
  v1::PersistResponse response;
  v1::Recording recording;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle());
    bool first = true;
    while (reader->Read(&response)) {
      if (first) {
        progress.Note(absl::StrCat("hookline: recording ", flags.name, " ", WhatWasFound(response.disposition())));
        if (std::optional<std::string> note = NoteOfFirstTokens(request.capture(), tokens.get())) {
          progress.Note(absl::StrCat("hookline: ", *note));
        }
        progress.SetTotal(response.max_rows());
        progress.SetBefore(response.rows(), response.bytes());
        first = false;
      }
      progress.Set(response.rows(), response.bytes());
      if (response.has_recording()) recording = response.recording();
    }
  }
  const absl::Status status = client::FromGrpc(reader->Finish());
  if (interrupt.came()) {
    return absl::CancelledError(absl::StrCat("interrupted; the server continues to record ", flags.name,
                                             " (hookline recordings ", flags.name, " --stop ends it)"));
  }
  if (!recording.name().empty()) std::fputs(RecordingText(recording).c_str(), stdout);
  if (!request.has_part()) {  // a part's budgets are less than the requested ones
    for (const std::string& note : NotesOfRecording(request.capture(), recording)) {
      std::fprintf(stderr, "hookline: %s\n", note.c_str());
    }
  }
  if (tokens != nullptr && absl::IsInvalidArgument(status)) return tokens->NamePlace(status);
  return ExplainUnavailable(status, server.address);
}

}  // namespace

void AddPersistCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("persist", "Makes the server record a capture on its disk");
  command->footer(kFooter);
  auto flags = std::make_shared<PersistFlags>();
  AddServerOption(*command, invocation);
  command->add_option("name", flags->name, "The recording's name: letters, digits, and . _ -")
      ->type_name("NAME")
      ->required();
  AddCaptureRequestOptions(*command, *flags, Feeds::kNotOffered);
  command
      ->add_option("--part", flags->part,
                   "Record only part INDEX, counted from 0, of COUNT equal parts of the dataset's sequences; hookline "
                   "merge makes one recording from the parts. --max-activations is for all parts together")
      ->type_name("INDEX/COUNT");
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress");
  command->callback([flags, &invocation] {
    RequireSource(*flags);
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
