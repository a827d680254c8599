// Writes a capture into a recording on a thread of its own, and with `record_as` hands its events on to a client.
// Recorder makes sessions.
#ifndef HOOKLINE_SERVER_RECORDER_RECORDING_SESSION_H_
#define HOOKLINE_SERVER_RECORDER_RECORDING_SESSION_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/client_identity.h"
#include "server/engine/engine.h"
#include "server/recording/catalog.h"
#include "server/recording/writer.h"

namespace hookline {

// Thread-safe.
class RecordingSession {
 public:
  struct Options {
    std::string name;
    std::string request_digest;
    std::optional<RecordingPart> part;  // the part of the dataset that a new recording holds
    CapturePlan plan;                   // with provenance; begins where the recording ends
    bool continues = false;             // the recording exists; otherwise it is created
    int64_t expected_rows = 0;          // for Progress
    bool has_client = false;            // hands events on
    bool client_wants_provenance = false;
    CaptureCallbacks client_callbacks;
  };

  struct Progress {
    int64_t rows = 0;      // of whole row groups, from the recording's start
    int64_t max_rows = 0;  // the most there may be
    int64_t bytes = 0;
    int64_t new_rows = 0;  // since this session began
    absl::Duration time;   // since then
    bool ended = false;
    std::optional<CaptureStarted> started;  // once the recording is in the catalog
    // These are set at the end: the status, with the codes of the proto's PersistResponse, and the capture's summary.
    absl::Status status;
    std::optional<CaptureEnded> summary;
  };

  // Starts the capture and the thread. `engine` and `catalog` must outlive the session. Errors of Engine::Start.
  static absl::StatusOr<std::shared_ptr<RecordingSession>> Start(Engine* engine, Catalog* catalog, Options options,
                                                                 const ClientIdentity& client);
  // Interrupts the session if it still runs, and waits for it.
  ~RecordingSession();
  RecordingSession(const RecordingSession&) = delete;
  RecordingSession& operator=(const RecordingSession&) = delete;

  const std::string& name() const { return options_.name; }
  // The client that the recording belongs to; empty: nobody.
  const std::string& client() const { return client_; }
  const std::string& request_digest() const { return options_.request_digest; }
  Progress progress() const;
  void WaitUntilEnded() const;

  // Calls `changed` when rows were written (about once a second) and at the end, on the session's thread; `changed`
  // must not block. Returns an id for Unwatch, after which `changed` is not called any more.
  int Watch(std::function<void()> changed);
  void Unwatch(int watch);

  // Ends the recording after the row group that is being written; its state is STOPPED. Returns at once.
  void Stop();
  // Ends the recording where it is, even inside a row group; its state is INTERRUPTED. Returns at once.
  void Interrupt();

  // Called by the capture that the client sees (has_client).
  std::optional<CaptureEvent> NextForClient();
  void ClientLeft();
  Capture& inner() { return *capture_; }

 private:
  enum class Wish { kGoOn, kStop, kInterrupt };

  RecordingSession(Catalog* catalog, Options options, const ClientIdentity& client);

  void Run();
  // Returns whether the session is over.
  bool Handle(CaptureEvent event);
  absl::Status Begin();
  absl::Status Record(const Chunk& chunk);
  void End(RecordingState state, CaptureEnded ended);
  void EndEarly(RecordingState state, absl::Status status);
  void HandOn(CaptureEvent event);
  void Notify();
  void Wake();

  Catalog* const catalog_;
  Options options_;  // without the plan once the capture has started
  const std::string client_;
  const absl::Time begin_;
  std::shared_ptr<Capture> capture_;
  std::thread thread_;

  const CaptureStarted started_;          // known before the capture is admitted, so that a waiting recording is listed
  std::optional<Manifest> new_manifest_;  // none if the recording exists

  // Only the thread uses these.
  bool admitted_ = false;
  std::unique_ptr<RecordingWriter> writer_;
  std::vector<int64_t> rows_;  // of each hook point, written
  std::string last_token_;
  bool inside_group_ = false;
  absl::Time last_notify_ = absl::InfinitePast();

  mutable absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = true;
  Wish wish_ ABSL_GUARDED_BY(mutex_) = Wish::kGoOn;
  bool client_left_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<CaptureEvent> for_client_ ABSL_GUARDED_BY(mutex_);
  Progress progress_ ABSL_GUARDED_BY(mutex_);
  int64_t rows_at_begin_ ABSL_GUARDED_BY(mutex_) = 0;

  // This is held while callbacks run, so that removing one waits for it. It is acquired before mutex_.
  absl::Mutex callback_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::map<int, std::function<void()>> watches_ ABSL_GUARDED_BY(callback_mutex_);
  int next_watch_ ABSL_GUARDED_BY(callback_mutex_) = 0;
  CaptureCallbacks client_callbacks_ ABSL_GUARDED_BY(callback_mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_RECORDING_SESSION_H_
