#include "server/metrics/metrics.h"

#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"
#include "server/base/status.h"
#include "server/metrics/client_metrics.h"
#include "server/metrics/family_writer.h"
#include "server/metrics/process_metrics.h"
#include "server/metrics/recording_metrics.h"

namespace hookline {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = FamilyWriter::Labels;

constexpr const char* kReasons[] = {"budget", "source_ended", "cancelled", "shutting_down", "error"};

void AddModels(const EngineSnapshot& snapshot, std::vector<MetricFamily>* families) {
  FamilyWriter tokens("hookline_tokens_total", "Tokens run, padding not counted.", MetricType::Counter);
  FamilyWriter fill("hookline_batch_fill_ratio", "Share of a batch's positions that held a token.",
                    MetricType::Histogram);
  FamilyWriter forward("hookline_forward_seconds", "Time of a batch's forward pass.", MetricType::Histogram);
  FamilyWriter queue("hookline_queue_seconds",
                     "Time from when a capture's next sequence could run until its forward pass.",
                     MetricType::Histogram);
  FamilyWriter memory("hookline_device_memory_bytes", "Memory allocated on the model's devices; 0 on the CPU.",
                      MetricType::Gauge);
  FamilyWriter up("hookline_replica_up", "1, or 0 if a device of the replica has failed.", MetricType::Gauge);
  FamilyWriter load("hookline_replica_load", "Share of the last seconds in which the replica computed.",
                    MetricType::Gauge);
  FamilyWriter run("hookline_replica_tokens_total", "Tokens that the replica has run, padding not counted.",
                   MetricType::Counter);
  FamilyWriter launched("hookline_replica_batches", "Batches that the replica has begun and not yet computed.",
                        MetricType::Gauge);
  FamilyWriter depth("hookline_queue_depth", "Captures that wait to be admitted, and scorings that wait or run.",
                     MetricType::Gauge);
  FamilyWriter queued("hookline_queued_tokens", "Tokens of requests that are in no forward pass yet.",
                      MetricType::Gauge);
  for (const EngineSnapshot::ModelLoad& model : snapshot.models) {
    for (size_t i = 0; i < model.replicas.size(); ++i) {
      const EngineSnapshot::ReplicaLoad& replica = model.replicas[i];
      const Labels labels = {{"model", model.model}, {"replica", absl::StrCat(i)}, {"device", replica.devices()}};
      up.Add(labels, replica.is_lost ? 0 : 1);
      load.Add(labels, replica.busy_share);
      run.Add(labels, static_cast<double>(replica.tokens));
      launched.Add(labels, static_cast<double>(replica.launched_batches));
    }
    const Labels labels = {{"model", model.model}};
    tokens.Add(labels, static_cast<double>(model.tokens));
    fill.Add(labels, model.batch_fill);
    forward.Add(labels, model.forward_seconds);
    queue.Add(labels, model.queue_seconds);
    memory.Add(labels, static_cast<double>(model.device_memory_bytes));
    depth.Add({{"model", model.model}, {"queue", "captures"}}, static_cast<double>(model.captures_queued));
    depth.Add({{"model", model.model}, {"queue", "scores"}}, static_cast<double>(model.scores));
    queued.Add(labels, static_cast<double>(model.tokens_queued));
  }
  for (FamilyWriter* writer :
       {&tokens, &fill, &forward, &queue, &memory, &up, &load, &run, &launched, &depth, &queued}) {
    families->push_back(writer->Take());
  }
}

}  // namespace

std::vector<MetricFamily> CollectMetrics(const EngineSnapshot& snapshot) {
  std::vector<MetricFamily> families;

  FamilyWriter slabs("hookline_slabs", "Slabs by state: in no window, in a window and empty, with rows.",
                     MetricType::Gauge);
  slabs.Add({{"state", "free"}}, static_cast<double>(snapshot.slabs_free));
  slabs.Add({{"state", "reserved"}}, static_cast<double>(snapshot.slabs_reserved));
  slabs.Add({{"state", "filled"}}, static_cast<double>(snapshot.slabs_filled));
  families.push_back(slabs.Take());

  FamilyWriter captures("hookline_captures", "Captures by state.", MetricType::Gauge);
  captures.Add({{"state", "queued"}}, static_cast<double>(snapshot.captures_queued));
  captures.Add({{"state", "running"}}, static_cast<double>(snapshot.captures_running));
  families.push_back(captures.Take());

  FamilyWriter ended("hookline_captures_ended_total", "Captures that ended, by reason.", MetricType::Counter);
  for (size_t i = 0; i < snapshot.captures_ended.size() && i < std::size(kReasons); ++i) {
    ended.Add({{"reason", kReasons[i]}}, static_cast<double>(snapshot.captures_ended[i]));
  }
  families.push_back(ended.Take());

  FamilyWriter rows("hookline_rows_total", "Rows handed to sinks.", MetricType::Counter);
  FamilyWriter bytes("hookline_bytes_total", "Bytes of values handed to sinks.", MetricType::Counter);
  for (const EngineSnapshot::HookPoint& hook_point : snapshot.hook_points) {
    const Labels labels = {{"model", hook_point.model}, {"hook_point", hook_point.name}};
    rows.Add(labels, static_cast<double>(hook_point.rows));
    bytes.Add(labels, static_cast<double>(hook_point.bytes));
  }
  families.push_back(rows.Take());
  families.push_back(bytes.Take());

  AddModels(snapshot, &families);
  return families;
}

// prometheus-cpp's own Exposer runs on threads with stacks of 100 KiB, into which OpenBLAS's and glog's thread-local
// variables do not fit, so only prometheus-cpp's text format is used here.
absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address, const Engine* engine,
                                                                    const Catalog* catalog, const CallMetrics* calls) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || absl::StartsWith(address, "unix:")) {
    return InvalidField("metrics-listen", absl::StrCat("`", address, "` is not HOST:PORT"));
  }
  ASSIGN_OR_RETURN(BoundAddress bound, BindAddress(address));
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(bound), engine, catalog, calls));
}

MetricsServer::MetricsServer(BoundAddress bound, const Engine* engine, const Catalog* catalog, const CallMetrics* calls)
    : http_(std::move(bound), "/metrics", "text/plain; version=0.0.4", [engine, catalog, calls] {
        const prometheus::TextSerializer serializer;
        const EngineSnapshot snapshot = engine->Snapshot();
        std::string page = serializer.Serialize(CollectMetrics(snapshot));
        page += serializer.Serialize(CollectClientMetrics(snapshot));
        page += serializer.Serialize(CollectProcessMetrics());
        if (calls != nullptr) page += serializer.Serialize(calls->Collect());
        if (catalog != nullptr) page += serializer.Serialize(CollectRecordingMetrics(catalog->Usage()));
        return page;
      }) {}

}  // namespace hookline
