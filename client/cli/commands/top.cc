#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/terminal/report.h"
#include "client/cli/terminal/text_format.h"
#include "client/cpp/rpc_status.h"
#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/base/escape.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

struct TopFlags {
  bool once = false;
  bool json = false;
  double interval_seconds = 2;
  std::string sort = "share";
};

std::string WaitName(v1::CaptureWait wait) {
  switch (wait) {
    case v1::CAPTURE_WAIT_ADMISSION:
      return "admission";
    case v1::CAPTURE_WAIT_SEQUENCES:
      return "sequences";
    case v1::CAPTURE_WAIT_DEVICE:
      return "device";
    case v1::CAPTURE_WAIT_COPY:
      return "copy";
    case v1::CAPTURE_WAIT_READER:
      return "reader";
    default:
      return absl::StrCat(static_cast<int>(wait));
  }
}

// Sorts by a column, the largest first; equal captures stay in the order of arrival.
void Sort(const std::string& column, std::vector<v1::CaptureStatus>* captures) {
  const auto key = [&](const v1::CaptureStatus& capture) {
    if (column == "rows") return capture.rows_per_second();
    if (column == "bytes") return capture.bytes_per_second();
    if (column == "slabs") return static_cast<double>(capture.slabs());
    if (column == "age") return capture.age_seconds();
    if (column == "idle") return capture.idle_seconds();
    return capture.device_share();
  };
  std::stable_sort(captures->begin(), captures->end(), [&](const auto& a, const auto& b) { return key(a) > key(b); });
}

std::string Text(const v1::ListCapturesResponse& response, const std::vector<v1::CaptureStatus>& captures) {
  std::string text = absl::StrFormat("%s of at most %d; %s of %s slabs of %sB are in use\n",
                                     Count(response.captures_size(), "capture"), response.max_captures(),
                                     WithCommas(response.slabs() - response.free_slabs()), WithCommas(response.slabs()),
                                     ShortNumber(static_cast<double>(response.slab_bytes())));
  std::vector<std::vector<std::string>> rows = {{"client", "id", "model", "source", "hook points", "rows", "rows/s",
                                                 "bytes/s", "device", "slabs", "age", "waits for"}};
  for (const v1::CaptureStatus& capture : captures) {
    std::string waits = WaitName(capture.waits_for());
    if (capture.captures_ahead() > 0) absl::StrAppend(&waits, ", ", capture.captures_ahead(), " ahead");
    if (capture.idle_seconds() >= 1) absl::StrAppend(&waits, " ", ShortTime(capture.idle_seconds()));
    rows.push_back({Escaped(capture.client()), absl::StrCat(capture.id()), Escaped(capture.model()),
                    Escaped(capture.source()), WithCommas(capture.hook_point_count()), WithCommas(capture.rows()),
                    ShortNumber(capture.rows_per_second()), ShortNumber(capture.bytes_per_second()) + "B",
                    absl::StrFormat("%.0f%%", 100 * capture.device_share()), WithCommas(capture.slabs()),
                    ShortTime(capture.age_seconds()), waits});
  }
  return text + Table(rows);
}

std::string Json(const v1::ListCapturesResponse& response, const std::vector<v1::CaptureStatus>& captures) {
  nlohmann::ordered_json json = {{"slabs", response.slabs()},
                                 {"free_slabs", response.free_slabs()},
                                 {"slab_bytes", response.slab_bytes()},
                                 {"max_captures", response.max_captures()},
                                 {"captures", nlohmann::ordered_json::array()}};
  for (const v1::CaptureStatus& capture : captures) {
    json["captures"].push_back(
        {{"id", capture.id()},
         {"client", capture.client()},
         {"model", capture.model()},
         {"hook_points", std::vector<std::string>(capture.hook_points().begin(), capture.hook_points().end())},
         {"hook_point_count", capture.hook_point_count()},
         {"source", capture.source()},
         {"rows", capture.rows()},
         {"bytes", capture.bytes()},
         {"rows_per_second", capture.rows_per_second()},
         {"bytes_per_second", capture.bytes_per_second()},
         {"age_seconds", capture.age_seconds()},
         {"waits_for", WaitName(capture.waits_for())},
         {"idle_seconds", capture.idle_seconds()},
         {"slabs", capture.slabs()},
         {"device_share", capture.device_share()},
         {"captures_ahead", capture.captures_ahead()}});
  }
  // One line, so that a script reads a line for each refresh.
  return json.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::Status Run(const TopFlags& flags, const ServerChoice& server, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const std::unique_ptr<client::Client> client, Connect(server));
  const auto stub = v1::CaptureService::NewStub(client->channel());
  const Interrupt::Listener listener(&interrupt, [] {});
  do {
    grpc::ClientContext context;
    v1::ListCapturesResponse response;
    const grpc::Status status = stub->ListCaptures(&context, {}, &response);
    if (!status.ok()) return ExplainUnavailable(client::FromGrpc(status), server.address);
    std::vector<v1::CaptureStatus> captures(response.captures().begin(), response.captures().end());
    Sort(flags.sort, &captures);
    // Clears the terminal before each refresh.
    if (!flags.once && !flags.json) std::fputs("\x1b[H\x1b[2J", stdout);
    std::fputs((flags.json ? Json(response, captures) : Text(response, captures)).c_str(), stdout);
    std::fflush(stdout);
  } while (!flags.once && !interrupt.WaitFor(absl::Seconds(flags.interval_seconds)));
  return absl::OkStatus();
}

}  // namespace

void AddTopCommand(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("top", "Shows the captures that run or wait, refreshed until Ctrl-C");
  auto flags = std::make_shared<TopFlags>();
  AddServerOption(*command, invocation);
  command->add_flag("--once", flags->once, "Show the captures once");
  command->add_flag("--json", flags->json, "Print one line of JSON for each refresh");
  command->add_option("--interval", flags->interval_seconds, "Seconds between two refreshes")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command
      ->add_option("--sort", flags->sort,
                   "The column to sort by, the largest first: share, rows, bytes, slabs, age, idle")
      ->check(CLI::IsMember({"share", "rows", "bytes", "slabs", "age", "idle"}))
      ->capture_default_str();
  command->callback([flags, &invocation] {
    invocation.run = [flags, &invocation] { return Run(*flags, invocation.server, *invocation.interrupt); };
  });
}

}  // namespace hookline::cli
