#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/commands/capture_request.h"
#include "client/cli/commands/commands.h"
#include "client/cli/commands/notes.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "client/cli/transfer.h"
#include "client/cpp/client.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kDescription[] = "Captures the rows of hook points and writes one safetensors file for each";

constexpr char kFooter[] =
    R"(One of --text, --tokens and --dataset gives the token sequences.

Examples:
  The rows of a sentence, which the model's tokenizer cuts into tokens:
    hookline capture --hook-points blocks.2.hook_resid_post --text 'The cat sat' --out rows
  Documents, from the field `text` of each line:
    hookline capture --hook-points blocks.2.hook_resid_post --tokens docs.jsonl --token-format jsonl:text --out rows
  The residual stream after every block, for the ids in a file (one sequence a line), 100000 rows of each:
    hookline capture --hook-points 'blocks.*.hook_resid_post' --tokens ids.txt --max-activations 100000 --out rows
  A text for a byte-level model; each sequence is token 256 and as many bytes as the model takes after it:
    hookline capture --hook-points blocks.2.hook_mlp_out --tokens book.txt --token-format bytes --prepend-token 256 --out rows
  A dataset that the server holds, in bfloat16, without the first position, with the origin of each row:
    hookline capture --hook-points blocks.2.hook_mlp_out --dataset pile --sequence-length 1024 --skip-first 1 \
        --dtype bfloat16 --provenance --out rows
  No files, only a summary (hookline stats shows more):
    hookline capture --hook-points '*' --tokens ids.npy --max-activations 1000

Files are named after their hook points; the tensor inside and the metadata carry the exact name. With --provenance
each file also holds provenance/sequence, provenance/position and provenance/token_id. Files appear when they are
complete: a capture that fails or is interrupted leaves none.

With several servers that hold the same model (--server a:7471,b:7471, --server hookline://FILE with an address a
line, or a DNS name with several addresses), each sequence goes to a server that is free. The files have the same rows
in the same order as those of one server. If a server dies, hangs or drains, the others run what it had begun; once it
is back, it is used again. Texts run on one server. --feed and --record-as need a single server, as do --sample-rows
with --tokens, and --exclude-token with --shuffle-seed.

If the server goes away, or all of several do, the capture continues once a server is back, within about a minute. With
a single server, it fails if the tokens come from standard input, because they cannot be read again.)";

struct CaptureFlags : CaptureRequestFlags, TransferFlags {
  std::string record_as;
};

// Returns the most rows that can come, over all hook points; none if that is unknown.
std::optional<int64_t> TotalRows(const CaptureFlags& flags, const v1::CaptureRequest& request,
                                 const v1::CaptureStarted& started, const TokenSource* tokens, AnyServer& server) {
  if (tokens == nullptr && (request.has_dataset() || request.has_text())) {
    absl::StatusOr<v1::EstimateCaptureResponse> estimate = server.EstimateCapture(request);
    if (!estimate.ok()) return std::nullopt;  // only the display depends on it
    int64_t total = 0;
    for (const v1::HookPointEstimate& point : estimate->hook_points()) total += point.rows();
    return total;
  }
  const std::optional<int64_t> ids = tokens == nullptr ? std::nullopt : tokens->total_ids();
  if (!ids.has_value() && !flags.max_activations.has_value()) return std::nullopt;
  int64_t total = 0;
  for (const v1::HookPointGrant& grant : started.hook_points()) {
    total += std::min(grant.max_activations(), ids.value_or(grant.max_activations()));
  }
  return total;
}

// Returns whether several servers can share a capture. For any other capture, a DNS name stands for one server.
bool IsShareable(const v1::CaptureRequest& request) {
  return !request.has_feed() && !request.has_text() && request.record_as().empty();
}

// The clients of a capture.
struct Servers {
  std::vector<client::NamedServer> sharing;  // empty: asked[0] runs the capture
  std::vector<std::unique_ptr<client::Client>> asked;

  std::vector<client::Client*> ToAsk() const {
    std::vector<client::Client*> clients;
    for (const auto& client : asked) clients.push_back(client.get());
    return clients;
  }
};

absl::StatusOr<Servers> ServersOf(const ServerChoice& server, const v1::CaptureRequest& request) {
  Servers servers;
  if (!request.has_text()) {
    const Names names = IsShareable(request) ? Names::kSpread : Names::kKept;
    ASSIGN_OR_RETURN(servers.sharing, ConnectAll(server, names));
  }
  if (servers.sharing.size() > 1) {
    // The end of a capture cancels its clients' calls, but a place in a file of texts can be looked up afterwards.
    ASSIGN_OR_RETURN(std::vector<client::NamedServer> asked, ConnectAll(server, Names::kSpread));
    for (client::NamedServer& one : asked) servers.asked.push_back(std::move(one.client));
    return servers;
  }
  servers.sharing.clear();
  // All texts run on one server, because the server cuts them into sequences.
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, ConnectAny(server));
  servers.asked.push_back(std::move(client));
  return servers;
}

absl::Status Run(const CaptureFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(v1::CaptureRequest request, MakeCaptureRequest(flags));
  request.set_provenance(flags.provenance);
  request.set_record_as(flags.record_as);
  ASSIGN_OR_RETURN(Servers servers, ServersOf(server, request));
  AnyServer any(servers.ToAsk());
  ASSIGN_OR_RETURN(const std::unique_ptr<TokenSource> tokens, OpenTokens(flags, any, server.address));

  Transfer transfer = CaptureTransfer(request, tokens.get(), *servers.asked[0]);
  if (!servers.sharing.empty()) {
    transfer.run = [&](const CaptureHandlers& handlers, Progress& progress, Interrupt& signals) {
      return RunSharedCapture(std::move(servers.sharing), request, tokens.get(), handlers, progress, signals);
    };
  }
  transfer.on_started = [&](const v1::CaptureStarted& started, Progress& progress) {
    for (const std::string& note : NotesOfGrant(started)) progress.Note(absl::StrCat("hookline: ", note));
    std::vector<std::string> added;
    for (const v1::SpecialToken& token : started.added_special_tokens()) {
      added.push_back(absl::StrCat(Escaped(token.token()), " (", token.id(), ")"));
    }
    if (!added.empty()) progress.Note(absl::StrCat("hookline: added to each text: ", absl::StrJoin(added, ", ")));
    if (!started.tokenizer_warning().empty()) {
      progress.Note(absl::StrCat("hookline: ", Escaped(started.tokenizer_warning())));
    }
    progress.SetTotal(TotalRows(flags, request, started, tokens.get(), any));
  };
  transfer.notes = [&](const CaptureResult& result) { return NotesOfEnd(request, tokens.get(), result); };
  transfer.table = CaptureTable;
  return RunTransfer(flags, transfer, server.address, interrupt);
}

}  // namespace

void AddCaptureCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("capture", kDescription);
  command->footer(kFooter);
  auto flags = std::make_shared<CaptureFlags>();
  AddServerOption(*command, invocation);
  AddCaptureRequestOptions(*command, *flags, Feeds::kOffered);

  const std::string values = "Output";
  CLI::Option* out = command->add_option("--out", flags->out, "Directory for the files. Without it: statistics only")
                         ->type_name("DIR")
                         ->group(values);
  command->add_flag("--provenance", flags->provenance, "Also write where each row comes from")
      ->needs(out)
      ->group(values);
  command->add_flag("--overwrite", flags->overwrite, "Replace existing files")->needs(out)->group(values);
  command->add_option("--record-as", flags->record_as, "Also record the rows on the server under this name")
      ->type_name("NAME")
      ->group(values);
  command->add_flag("--json", flags->json, "Print the report as JSON")->group(values);
  command->add_flag("--quiet,-q", flags->quiet, "Show no progress")->group(values);

  command->callback([flags, &invocation] {
    RequireSource(*flags);
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
