#include "server/metrics/client_metrics.h"

#include <algorithm>
#include <map>
#include <string>

#include "server/metrics/family_writer.h"

namespace hookline {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;
using ClientLoad = EngineSnapshot::ClientLoad;

ClientLoad SumOfUnnamed(const std::vector<ClientLoad>& clients) {
  ClientLoad sum;
  sum.client = kUnnamedClients;
  for (const ClientLoad& load : clients) {
    if (load.is_authenticated) continue;
    sum.captures_running += load.captures_running;
    sum.captures_waiting += load.captures_waiting;
    sum.slabs += load.slabs;
    sum.idle_seconds = std::max(sum.idle_seconds, load.idle_seconds);
  }
  return sum;
}

}  // namespace

std::vector<MetricFamily> CollectClientMetrics(const EngineSnapshot& snapshot) {
  FamilyWriter captures("hookline_client_captures", "Captures by client of the auth file and state.",
                        MetricType::Gauge);
  FamilyWriter slabs("hookline_client_slabs", "Slabs that a client's captures hold.", MetricType::Gauge);
  FamilyWriter idle("hookline_client_idle_seconds",
                    "The longest time for which a capture has waited for its client to read or to send.",
                    MetricType::Gauge);
  FamilyWriter tokens("hookline_client_tokens_total",
                      "Tokens run for a client of the auth file; it restarts after the client was idle.",
                      MetricType::Counter);
  std::vector<ClientLoad> loads = {SumOfUnnamed(snapshot.clients)};
  for (const ClientLoad& load : snapshot.clients) {
    if (load.is_authenticated) loads.push_back(load);
  }
  for (const ClientLoad& load : loads) {
    const std::string authenticated = load.is_authenticated ? "true" : "false";
    const FamilyWriter::Labels labels = {{"client", load.client}, {"authenticated", authenticated}};
    const auto with_state = [&](const char* state) {
      FamilyWriter::Labels all = labels;
      all.push_back({"state", state});
      return all;
    };
    captures.Add(with_state("running"), static_cast<double>(load.captures_running));
    captures.Add(with_state("queued"), static_cast<double>(load.captures_waiting));
    slabs.Add(labels, static_cast<double>(load.slabs));
    idle.Add(labels, load.idle_seconds);
    // The sum over all others would fall whenever one of them is forgotten, but a counter must never fall.
    if (load.is_authenticated) tokens.Add(labels, static_cast<double>(load.tokens));
  }
  return {captures.Take(), slabs.Take(), idle.Take(), tokens.Take(),
          MakeFamily("hookline_captures_stalled_total", "Captures that --stall-timeout ended.", MetricType::Counter,
                     static_cast<double>(snapshot.captures_stalled))};
}

}  // namespace hookline
