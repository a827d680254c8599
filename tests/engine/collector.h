// A sink for tests, which takes a capture's events and keeps the rows; and a slow, obvious reference to compare
// them with.
#ifndef HOOKLINE_TESTS_ENGINE_COLLECTOR_H_
#define HOOKLINE_TESTS_ENGINE_COLLECTOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/engine/engine.h"

namespace hookline {

struct Collected {
  std::optional<CaptureStarted> started;
  struct Rows {
    std::vector<std::vector<float>> values;
    std::vector<std::vector<uint32_t>> indices;  // empty rows without top_k
    std::vector<int64_t> sequence;
    std::vector<int32_t> position;
    std::vector<uint32_t> token_id;
  };
  std::vector<Rows> hook_points;  // as in `started`
  struct ChunkSeen {
    int hook_point = 0;
    int64_t first_row = 0;
    int64_t rows = 0;
    std::string resume_token;
  };
  std::vector<ChunkSeen> chunks;
  std::optional<CaptureEnded> ended;
};

// Starts a capture and reads it. The thread that calls Read takes the events; the callbacks only wake it.
class Collector {
 public:
  // If the engine refuses, capture() is null and status() holds the error.
  Collector(Engine& engine, CaptureRequest request, const std::string& address = "test");

  const absl::Status& status() const { return status_; }
  Capture& capture() { return *capture_; }

  // Waits for one event and takes it. Returns false after the end.
  bool ReadOne();
  // Takes everything up to the end.
  const Collected& ReadAll();
  // Takes up to `chunks` chunks, or everything up to the end.
  const Collected& ReadChunks(int chunks);
  // Sends a batch to a capture with a StreamedSource. Waits for room first.
  absl::Status Send(TokenBatch batch);

  const Collected& collected() const { return collected_; }
  void Release() { capture_.reset(); }

 private:
  absl::Status status_;
  absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool room_ ABSL_GUARDED_BY(mutex_) = true;
  std::shared_ptr<Capture> capture_;
  Collected collected_;
};

// Returns the rows of a capture of `sequences` from FakeModel, computed in the plainest way. `names` are in the order
// of the request.
std::vector<Collected::Rows> Reference(const Model& model, const std::vector<std::string>& names,
                                       const std::vector<std::vector<uint32_t>>& sequences,
                                       const std::map<std::string, int64_t>& budgets, const Selection& selection,
                                       int64_t first_sequence = 0);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_COLLECTOR_H_
