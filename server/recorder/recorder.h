// Starts, joins and continues recordings as the proto RecordingService says.
#ifndef HOOKLINE_SERVER_RECORDER_RECORDER_H_
#define HOOKLINE_SERVER_RECORDER_RECORDER_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/capture/capture.h"
#include "server/capture/client_identity.h"
#include "server/engine/engine.h"
#include "server/recorder/recording_session.h"
#include "server/recording/catalog.h"
#include "server/recording/merge.h"
#include "server/recording/merge_plan.h"

namespace hookline {

enum class PersistDisposition { kStarted, kJoined, kContinued, kAlreadyComplete };

struct Persisted {
  PersistDisposition disposition = PersistDisposition::kStarted;
  std::shared_ptr<RecordingSession> session;  // null where the recording is complete
};

// Returns PERMISSION_DENIED unless the client is the recording's owner or an administrator. An empty owner matches
// no client.
absl::Status CheckOwner(absl::string_view recording, absl::string_view owner, const ClientIdentity& client);

// Thread-safe.
class Recorder {
 public:
  // `engine` and `catalog` must outlive the recorder.
  Recorder(Engine* engine, Catalog* catalog) : engine_(engine), catalog_(catalog) {}
  // Interrupts the sessions that still run.
  ~Recorder();

  Catalog& catalog() { return *catalog_; }
  TokenLimits token_limits() const { return engine_->options().token_limits(); }

  // The proto RecordingService.Persist. The session goes on when the client leaves. With `part`, whose index and count
  // must be set, only that part of the dataset is recorded. Errors of CheckOwner and CutToPart, and those that the
  // proto names.
  absl::StatusOr<Persisted> Persist(const std::string& name, CaptureRequest request, std::optional<RecordingPart> part,
                                    const ClientIdentity& client);

  // Begins the proto RecordingService.MergeRecordings. Errors as Catalog::Merge; RESOURCE_EXHAUSTED also for a client's
  // quota.
  absl::StatusOr<std::unique_ptr<RecordingMerge>> Merge(const std::string& name, const std::vector<std::string>& parts,
                                                        const ClientIdentity& client);

  // Starts a capture with `record_as`: `name` is recorded while the events go to the client. Releasing the capture
  // makes the recording STOPPED.
  absl::StatusOr<std::shared_ptr<Capture>> Record(const std::string& name, CaptureRequest request,
                                                  const ClientIdentity& client, CaptureCallbacks callbacks);

  // Checks that the client may stop or delete the recording of that name. NOT_FOUND, PERMISSION_DENIED.
  absl::Status CheckMayChange(absl::string_view name, const ClientIdentity& client);

  // Returns the session that writes `name`; null if none does.
  std::shared_ptr<RecordingSession> Find(absl::string_view name);

  // Returns when no session runs. Call it after Engine::Drain, which ends them all.
  void WaitUntilIdle();

 private:
  // Returns RESOURCE_EXHAUSTED if the client's recordings are as many, or as large, as its quota allows.
  absl::Status CheckRecordingQuota(const ClientIdentity& client) const;
  std::shared_ptr<RecordingSession> FindLocked(absl::string_view name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets sessions that have ended.
  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Engine* const engine_;
  Catalog* const catalog_;
  absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<RecordingSession>, std::less<>> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_RECORDER_H_
