#include "server/metrics/call_metrics.h"

#include <utility>

#include "server/metrics/client_metrics.h"
#include "server/metrics/family_writer.h"

namespace hookline {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

// The range covers everything from a list of models to a capture that runs for hours.
const std::vector<double>& CallBounds() {
  static const auto* const bounds =
      new std::vector<double>{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600};
  return *bounds;
}
// The range covers everything from a message that a socket takes at once to a client that reads again after a minute.
const std::vector<double>& WireBounds() {
  static const auto* const bounds =
      new std::vector<double>{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10, 60};
  return *bounds;
}

// Alerts look for the server's own errors. Prometheus notices that a counter grows only if it has seen the
// counter before.
constexpr const char* kAlwaysShown[] = {"OK", "INTERNAL", "UNKNOWN", "DATA_LOSS"};

FamilyWriter::Labels LabelsOf(absl::string_view method) {
  const size_t slash = method.rfind('/');
  return {{"grpc_service", std::string(method.substr(1, slash - 1))},
          {"grpc_method", std::string(method.substr(slash + 1))}};
}

}  // namespace

void CallMetrics::Started(absl::string_view method) {
  absl::MutexLock lock(&mutex_);
  ++Find(method).started;
}

void CallMetrics::FirstRow(absl::string_view method, absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  Find(method).first_row_seconds.Add(absl::ToDoubleSeconds(duration));
}

void CallMetrics::Written(absl::string_view method, absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  Find(method).wire_seconds.Add(absl::ToDoubleSeconds(duration));
}

void CallMetrics::Ended(absl::string_view method, absl::string_view code, absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  Method& found = Find(method);
  ++found.ended[std::string(code)];
  found.seconds.Add(absl::ToDoubleSeconds(duration));
}

void CallMetrics::Refused(absl::string_view quota, const ClientIdentity& client) {
  const std::string name = client.is_authenticated ? client.name : kUnnamedClients;
  absl::MutexLock lock(&mutex_);
  ++refusals_[{std::string(quota), name, client.is_authenticated}];
}

CallMetrics::Method& CallMetrics::Find(absl::string_view method) {
  const auto found = methods_.find(method);
  if (found != methods_.end()) return found->second;
  Method& added = methods_[std::string(method)];
  added.seconds = added.first_row_seconds = Histogram::Empty(CallBounds());
  added.wire_seconds = Histogram::Empty(WireBounds());
  for (const char* code : kAlwaysShown) added.ended[code] = 0;
  return added;
}

std::vector<MetricFamily> CallMetrics::Collect() const {
  FamilyWriter started("hookline_grpc_server_started_total", "Calls that were received.", MetricType::Counter);
  FamilyWriter handled("hookline_grpc_server_handled_total", "Calls that ended, by code.", MetricType::Counter);
  FamilyWriter seconds("hookline_grpc_server_handling_seconds", "Time from when a call came until it ended.",
                       MetricType::Histogram);
  FamilyWriter first_row("hookline_first_row_seconds", "Time from when a call came until its first row left.",
                         MetricType::Histogram);
  FamilyWriter wire(
      "hookline_wire_seconds",
      "Time from when a message's rows were ready for its client until gRPC or shared memory had taken them.",
      MetricType::Histogram);
  FamilyWriter refusals("hookline_quota_refusals_total", "Calls that were refused over a client's quota.",
                        MetricType::Counter);
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, method] : methods_) {
    const FamilyWriter::Labels labels = LabelsOf(name);
    started.Add(labels, static_cast<double>(method.started));
    for (const auto& [code, count] : method.ended) {
      FamilyWriter::Labels with_code = labels;
      with_code.push_back({"grpc_code", code});
      handled.Add(with_code, static_cast<double>(count));
    }
    seconds.Add(labels, method.seconds);
    // Most methods send no rows.
    if (!method.first_row_seconds.IsEmpty()) first_row.Add(labels, method.first_row_seconds);
    if (!method.wire_seconds.IsEmpty()) wire.Add(labels, method.wire_seconds);
  }
  for (const auto& [refusal, count] : refusals_) {
    const auto& [quota, client, is_authenticated] = refusal;
    refusals.Add({{"quota", quota}, {"client", client}, {"authenticated", is_authenticated ? "true" : "false"}},
                 static_cast<double>(count));
  }
  return {started.Take(), handled.Take(), seconds.Take(), first_row.Take(), wire.Take(), refusals.Take()};
}

}  // namespace hookline
