#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/capture_run.h"
#include "client/cli/commands.h"
#include "client/cli/names.h"
#include "client/cli/report.h"
#include "client/cli/row_files.h"
#include "client/cli/scratch_file.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/recording_service.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr char kReadFooter[] =
    R"(Examples:
  Every tenth of a million rows, in an order that the seed decides:
    hookline read pile-resid --hook-points 'blocks.{2,5}.*' --row-count 100000 --shuffle-seed 1 --out rows
  What a recording's values are like, without writing them:
    hookline read pile-resid

The files are those of hookline capture.)";

constexpr char kExportFooter[] =
    R"(pt: a tensor that torch.load reads (weights_only too), under the name that the original collector gives it, the hook
point with its dots replaced by underscores. npy: NumPy's, for float32 and float16. safetensors: as hookline read.
manifest.json, written last, says which hook point, with its exact name, is in which file.)";

struct ReadFlags {
  std::string name;
  std::vector<std::string> hook_points;
  int64_t first_row = 0;
  int64_t row_count = 0;
  std::optional<int64_t> max_activations;
  std::vector<std::string> max_activations_for;
  std::optional<uint64_t> shuffle_seed;
  bool provenance = false;
  std::string format = "safetensors";
  bool manifest = false;  // write one
  std::string out;
  bool overwrite = false;
  bool json = false;
  bool quiet = false;
};

absl::StatusOr<v1::ReadRecordingRequest> MakeRequest(const ReadFlags& flags) {
  v1::ReadRecordingRequest request;
  request.set_name(flags.name);
  for (const std::string& list : flags.hook_points) {
    for (const std::string& name : SplitHookPoints(list)) request.add_hook_points(name);
  }
  request.set_first_row(flags.first_row);
  request.set_row_count(flags.row_count);
  if (flags.max_activations.has_value()) request.set_max_activations(*flags.max_activations);
  for (const std::string& entry : flags.max_activations_for) {
    const size_t equals = entry.rfind('=');
    int64_t rows = 0;
    if (equals == std::string::npos || !absl::SimpleAtoi(entry.substr(equals + 1), &rows)) {
      return absl::InvalidArgumentError(absl::StrCat("--max-activations-for: `", entry, "` is not NAME=ROWS"));
    }
    (*request.mutable_max_activations_by_hook_point())[entry.substr(0, equals)] = rows;
  }
  if (flags.shuffle_seed.has_value()) request.set_shuffle_seed(*flags.shuffle_seed);
  request.set_provenance(flags.provenance);
  return request;
}

FileFormat FormatOf(const std::string& name) {
  return name == "pt" ? FileFormat::kPt : name == "npy" ? FileFormat::kNpy : FileFormat::kSafetensors;
}

// Which hook point is in which file.
absl::Status WriteManifest(const ReadFlags& flags, const CaptureResult& result, const RowFiles& files) {
  nlohmann::ordered_json entries = nlohmann::ordered_json::object();
  for (int i = 0; i < result.started.hook_points_size(); ++i) {
    entries[files.name(i)] = {{"hook_point", result.started.hook_points(i).hook_point()},
                              {"rows", result.summary.hook_points(i).rows()},
                              {"width", result.started.hook_points(i).width()}};
  }
  const nlohmann::ordered_json manifest = {{"format", "hookline-export"},
                                           {"version", 1},
                                           {"recording", flags.name},
                                           {"model", result.started.model()},
                                           {"fingerprint", result.started.fingerprint()},
                                           {"dtype", DtypeName(result.started.dtype())},
                                           {"files", std::move(entries)}};
  const std::string text = manifest.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const std::string path = absl::StrCat(flags.out, "/manifest.json");
  ASSIGN_OR_RETURN(std::unique_ptr<ScratchFile> file, ScratchFile::Create(path + ".partial"));
  RETURN_IF_ERROR(file->Append(text.data(), static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(file->Sync());
  RETURN_IF_ERROR(file->Keep(path));
  return SyncDirectory(flags.out);
}

absl::Status Run(const ReadFlags& flags, const std::string& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(v1::ReadRecordingRequest request, MakeRequest(flags));
  ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, client::Client::Connect(server));
  // While files are being written a signal must not end the program before their temporary names are gone.
  Interrupt::Listener keep_running(&interrupt, [] {});
  std::unique_ptr<RowFiles> files;
  absl::StatusOr<CaptureResult> result;
  absl::Duration elapsed;
  {
    Progress progress(flags.quiet ? ProgressStyle::kNone : DefaultProgressStyle());
    CaptureHandlers handlers;
    handlers.on_started = [&](const v1::CaptureStarted& started) -> absl::Status {
      if (!flags.out.empty()) {
        ASSIGN_OR_RETURN(files, RowFiles::Create(flags.out, started,
                                                 {FormatOf(flags.format), flags.provenance,
                                                  flags.overwrite ? IfExists::kReplace : IfExists::kRefuse}));
      }
      // A recording grants no more rows than it has.
      int64_t total = 0;
      for (const v1::HookPointGrant& grant : started.hook_points()) total += grant.max_activations();
      progress.SetTotal(total);
      return absl::OkStatus();
    };
    handlers.on_chunk = [&](const client::Chunk& chunk) {
      return files == nullptr ? absl::OkStatus() : files->Append(chunk);
    };
    const StartCall start_call = [&](const std::string& resume_token) {
      v1::ReadRecordingRequest resumed = request;
      resumed.set_resume_token(resume_token);
      return std::make_unique<client::CaptureCall>(client->channel(), client::kReadRecordingMethod,
                                                   resumed.SerializeAsString(), /*streams_tokens=*/false);
    };
    result = RunCapture(start_call, nullptr, handlers, progress, interrupt);
    if (result.ok() && files != nullptr) {
      absl::Status status = files->Finish(result->summary.stop_reason());
      if (status.ok() && flags.manifest) status = WriteManifest(flags, *result, *files);
      if (!status.ok()) result = status;
    }
    elapsed = progress.elapsed();
  }
  if (!result.ok()) return ExplainUnavailable(result.status(), server);
  std::vector<std::string> paths;
  for (int i = 0; files != nullptr && i < result->started.hook_points_size(); ++i) paths.push_back(files->path(i));
  std::fputs((flags.json ? CaptureJson(*result, elapsed, paths) : CaptureTable(*result, elapsed, paths)).c_str(),
             stdout);
  return absl::OkStatus();
}

void AddSharedOptions(CLI::App& command, ReadFlags& flags) {
  command.add_option("name", flags.name, "The recording")->type_name("NAME")->required();
  command
      .add_option("--hook-points", flags.hook_points,
                  "Names and wildcards among those recorded, separated by commas. Repeatable. Default: all")
      ->type_name("NAMES")
      ->allow_extra_args(false);
  command.add_option("--first-row", flags.first_row, "The first row to take [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--row-count", flags.row_count, "How many rows; 0: all that follow [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--overwrite", flags.overwrite, "Replace files that are there");
  command.add_flag("--json", flags.json, "Print what came as JSON");
  command.add_flag("--quiet,-q", flags.quiet, "No progress");
}

}  // namespace

void AddReadCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("read", "Reads rows of a recording into safetensors files");
  command->footer(kReadFooter);
  auto flags = std::make_shared<ReadFlags>();
  AddServerOption(*command, invocation);
  AddSharedOptions(*command, *flags);
  command->add_option("--max-activations", flags->max_activations, "The most rows of each hook point")
      ->type_name("ROWS");
  command
      ->add_option("--max-activations-for", flags->max_activations_for, "Another number for one hook point. Repeatable")
      ->type_name("NAME=ROWS")
      ->allow_extra_args(false);
  command->add_option("--shuffle-seed", flags->shuffle_seed, "Rows in an order that this number decides")
      ->type_name("N");
  CLI::Option* out = command->add_option("--out", flags->out, "Directory for the files. Without it: statistics only")
                         ->type_name("DIR");
  command->add_flag("--provenance", flags->provenance, "Also write where each row comes from")->needs(out);
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

void AddExportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("export", "Writes a recording as one .pt, .npy or .safetensors per hook point");
  command->footer(kExportFooter);
  auto flags = std::make_shared<ReadFlags>();
  flags->manifest = true;
  AddServerOption(*command, invocation);
  AddSharedOptions(*command, *flags);
  command->add_option("--format", flags->format, "What the files are")
      ->check(CLI::IsMember({"pt", "npy", "safetensors"}))
      ->required();
  command->add_option("--out", flags->out, "Directory for the files")->type_name("DIR")->required();
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
