// The engine's counters and current state, for metrics.
#ifndef HOOKLINE_SERVER_ENGINE_SNAPSHOT_H_
#define HOOKLINE_SERVER_ENGINE_SNAPSHOT_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "server/model/stage.h"

namespace hookline {

// Counts of values in buckets: `counts[i]` counts values up to `bounds[i]`, the last one all larger values.
struct Histogram {
  std::vector<double> bounds;
  std::vector<uint64_t> counts;  // one more than bounds, not cumulative
  double sum = 0;

  // Returns a histogram without values. `bucket_bounds` ascend.
  static Histogram Empty(const std::vector<double>& bucket_bounds) {
    return {bucket_bounds, std::vector<uint64_t>(bucket_bounds.size() + 1), /*sum=*/0};
  }

  bool IsEmpty() const {
    return std::all_of(counts.begin(), counts.end(), [](uint64_t count) { return count == 0; });
  }

  void Add(double value) {
    const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value);
    ++counts[static_cast<size_t>(bucket - bounds.begin())];
    sum += value;
  }
};

// Counters count from the engine's start.
struct EngineSnapshot {
  struct HookPoint {
    std::string model;
    std::string name;
    int64_t rows = 0;   // handed to sinks
    int64_t bytes = 0;  // of values
  };
  // The load of one of a model's replicas.
  struct ReplicaLoad {
    // The devices of the stages, as --device spells them.
    std::string devices() const {
      std::string text;
      for (const Stage& stage : stages) text += (text.empty() ? "" : "+") + stage.device;
      return text;
    }

    std::vector<Stage> stages;     // at least one
    bool is_lost = false;          // its devices have failed
    int64_t tokens = 0;            // those that it has run
    double busy_share = 0;         // the share of the last seconds that it computed
    int64_t launched_batches = 0;  // not yet computed
  };
  struct ModelLoad {
    std::string model;
    std::vector<ReplicaLoad> replicas;
    int64_t tokens = 0;               // run, padding not counted
    int64_t captures_queued = 0;      // those that wait to be admitted
    int64_t scores = 0;               // scorings that wait or run
    int64_t tokens_queued = 0;        // of requests and not yet in a forward pass; those of datasets do not count
    Histogram batch_fill;             // share of a batch's positions that held a token
    Histogram forward_seconds;        // of a batch
    Histogram queue_seconds;          // from the time when a capture's next sequence could run until its forward pass
    int64_t device_memory_bytes = 0;  // allocated on its devices; 0 on the CPU
  };
  int64_t slabs_free = 0;      // in no window
  int64_t slabs_reserved = 0;  // in a window, empty
  int64_t slabs_filled = 0;    // with rows
  int64_t captures_queued = 0;
  int64_t captures_running = 0;
  // The load of one client that has captures.
  struct ClientLoad {
    std::string client;
    bool is_authenticated = false;  // the auth file names it, or the name is an address
    int64_t captures_running = 0;
    int64_t captures_waiting = 0;
    int64_t slabs = 0;
    int64_t tokens = 0;       // those that it has run since it has had captures
    double idle_seconds = 0;  // of the capture that has waited for it longest
  };
  std::vector<ClientLoad> clients;
  int64_t captures_stalled = 0;  // ended by --stall-timeout
  // One count for each StopReason, in its order.
  std::vector<int64_t> captures_ended;
  std::vector<HookPoint> hook_points;  // those that were captured
  std::vector<ModelLoad> models;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_SNAPSHOT_H_
