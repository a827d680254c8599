#include "server/recorder/recorder.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/quota_refusal.h"
#include "server/base/status.h"
#include "server/recorder/part_request.h"

namespace hookline {
namespace {

// The capture that the client of a recorded capture sees.
class RecordedCapture final : public Capture {
 public:
  explicit RecordedCapture(std::shared_ptr<RecordingSession> session) : session_(std::move(session)) {}
  ~RecordedCapture() override { Cancel(); }

  std::optional<CaptureEvent> Next() override { return session_->NextForClient(); }
  absl::StatusOr<bool> AddSequences(TokenBatch batch) override {
    return session_->inner().AddSequences(std::move(batch));
  }
  void FinishSource() override { session_->inner().FinishSource(); }
  void Cancel() override { session_->ClientLeft(); }
  void AddWireTime(absl::Duration duration) override { session_->inner().AddWireTime(duration); }

 private:
  const std::shared_ptr<RecordingSession> session_;
};

int64_t ExpectedRows(const CapturePlan& plan) {
  int64_t rows = 0;
  for (const CaptureEstimate::HookPoint& point : plan.Estimate().hook_points) rows = std::max(rows, point.rows);
  return rows;
}

absl::Status CheckSourceCanBeRecorded(const CaptureRequest& request, absl::string_view field) {
  if (!std::holds_alternative<FeedSource>(request.source)) return absl::OkStatus();
  return InvalidField(field, "a feed cannot be recorded; name its dataset as the source");
}

}  // namespace

absl::Status CheckOwner(absl::string_view recording, absl::string_view owner, const ClientIdentity& client) {
  if (client.is_admin || (client.is_authenticated && owner == client.name)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("recording ", recording,
                                                  " belongs to another client; this needs the role `admin`, which ",
                                                  client.name, " does not have"));
}

absl::Status Recorder::CheckMayChange(absl::string_view name, const ClientIdentity& client) {
  // A recording that waits to be admitted is not in the catalog yet.
  if (const std::shared_ptr<RecordingSession> session = Find(name); session != nullptr) {
    return CheckOwner(name, session->client(), client);
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, catalog_->Get(name));
  return CheckOwner(name, manifest->client, client);
}

absl::Status Recorder::CheckRecordingQuota(const ClientIdentity& client) const {
  ClientQuotas quotas = client.quotas;
  const ClientQuotas& defaults = engine_->options().default_quotas;
  if (!quotas.recordings.has_value()) quotas.recordings = defaults.recordings;
  if (!quotas.recording_bytes.has_value()) quotas.recording_bytes = defaults.recording_bytes;
  // A recording that was made without identities belongs to nobody and counts against no client.
  if (!client.is_authenticated || (!quotas.recordings.has_value() && !quotas.recording_bytes.has_value())) {
    return absl::OkStatus();
  }
  int64_t recordings = 0;
  int64_t bytes = 0;
  for (const auto& manifest : catalog_->List("", std::numeric_limits<int64_t>::max())) {
    if (manifest->client != client.name) continue;
    ++recordings;
    bytes += manifest->bytes();
  }
  if (quotas.recordings.has_value() && recordings >= *quotas.recordings) {
    return QuotaRefusal("recordings", absl::StrCat(client.name, " has ", recordings, " recordings, of at most ",
                                                   *quotas.recordings, " (quota `recordings`); delete one first"));
  }
  if (quotas.recording_bytes.has_value() && bytes >= *quotas.recording_bytes) {
    return QuotaRefusal("recording_bytes",
                        absl::StrCat("the recordings of ", client.name, " have ", bytes, " bytes, of at most ",
                                     *quotas.recording_bytes, " (quota `recording_bytes`); delete one first"));
  }
  return absl::OkStatus();
}

Recorder::~Recorder() {
  absl::MutexLock lock(&mutex_);
  for (auto& [name, session] : sessions_) session->Interrupt();
  sessions_.clear();
}

void Recorder::Reap() {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    it = it->second->progress().ended ? sessions_.erase(it) : std::next(it);
  }
}

std::shared_ptr<RecordingSession> Recorder::FindLocked(absl::string_view name) {
  Reap();
  const auto found = sessions_.find(name);
  return found == sessions_.end() ? nullptr : found->second;
}

std::shared_ptr<RecordingSession> Recorder::Find(absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  return FindLocked(name);
}

void Recorder::WaitUntilIdle() {
  std::vector<std::shared_ptr<RecordingSession>> running;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, session] : sessions_) running.push_back(session);
  }
  for (const auto& session : running) session->WaitUntilEnded();
}

absl::StatusOr<std::unique_ptr<RecordingMerge>> Recorder::Merge(const std::string& name,
                                                                const std::vector<std::string>& parts,
                                                                const ClientIdentity& client) {
  // The quota limits new recordings only.
  if (absl::IsNotFound(catalog_->Get(name).status())) RETURN_IF_ERROR(CheckRecordingQuota(client));
  return catalog_->Merge(name, client.is_authenticated ? client.name : "", parts);
}

absl::StatusOr<Persisted> Recorder::Persist(const std::string& name, CaptureRequest request,
                                            std::optional<RecordingPart> part, const ClientIdentity& client) {
  RETURN_IF_ERROR(CheckRecordingName(name));
  RETURN_IF_ERROR(CheckSourceCanBeRecorded(request, "capture.feed"));
  if (!request.resume_token.empty()) {
    return InvalidField("capture.resume_token", "must be empty: a recording knows where it continues");
  }
  if (request.statistics_only) {
    return InvalidField("capture.statistics_only", "sends no rows that could be recorded; leave it out");
  }
  // All recordings have the same form, so that equal rows have equal tokens and digests.
  request.provenance = true;
  request.encoding = Encoding::kBytes;
  request.max_message_bytes = 0;
  RecordingSession::Options options;
  if (part.has_value()) RETURN_IF_ERROR(CutToPart(*engine_, &*part, &request));
  ASSIGN_OR_RETURN(options.plan, engine_->Plan(std::move(request)));
  options.name = name;
  options.part = part;
  options.request_digest = options.plan.Digest();
  options.expected_rows = ExpectedRows(options.plan);
  const auto another = [&] {
    return absl::AlreadyExistsError(
        absl::StrCat("recording ", name, " was made by another request; give another name"));
  };

  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<std::shared_ptr<const Manifest>> manifest = catalog_->Get(name);
  if (manifest.ok()) RETURN_IF_ERROR(CheckOwner(name, (*manifest)->client, client));
  if (std::shared_ptr<RecordingSession> session = FindLocked(name)) {
    RETURN_IF_ERROR(CheckOwner(name, session->client(), client));
    if (session->request_digest() != options.request_digest) return another();
    return Persisted{PersistDisposition::kJoined, std::move(session)};
  }
  if (manifest.ok()) {
    if ((*manifest)->request_digest != options.request_digest) return another();
    if ((*manifest)->state == RecordingState::kComplete) {
      return Persisted{PersistDisposition::kAlreadyComplete, nullptr};
    }
    options.continues = true;
    RETURN_IF_ERROR(options.plan.ContinueFrom((*manifest)->resume_token, (*manifest)->resume_message_bytes));
  } else if (!absl::IsNotFound(manifest.status())) {
    return manifest.status();
  }
  if (!options.continues) RETURN_IF_ERROR(CheckRecordingQuota(client));
  const PersistDisposition disposition =
      options.continues ? PersistDisposition::kContinued : PersistDisposition::kStarted;
  ASSIGN_OR_RETURN(std::shared_ptr<RecordingSession> session,
                   RecordingSession::Start(engine_, catalog_, std::move(options), client));
  sessions_[name] = session;
  return Persisted{disposition, std::move(session)};
}

absl::StatusOr<std::shared_ptr<Capture>> Recorder::Record(const std::string& name, CaptureRequest request,
                                                          const ClientIdentity& client, CaptureCallbacks callbacks) {
  if (!CheckRecordingName(name).ok()) {
    return InvalidField("record_as", CheckRecordingName(name).message());
  }
  RETURN_IF_ERROR(CheckSourceCanBeRecorded(request, "feed"));
  RecordingSession::Options options;
  options.name = name;
  options.has_client = true;
  options.client_wants_provenance = request.provenance;
  options.client_callbacks = std::move(callbacks);
  options.continues = !request.resume_token.empty();
  request.provenance = true;
  ASSIGN_OR_RETURN(options.plan, engine_->Plan(std::move(request)));
  // The sequences of a stream are not known yet, so there is no digest that a Persist request could match.
  if (!options.plan.streams) {
    options.request_digest = options.plan.Digest();
    options.expected_rows = ExpectedRows(options.plan);
  }

  absl::MutexLock lock(&mutex_);
  const auto manifest = catalog_->Get(name);
  if (manifest.ok()) RETURN_IF_ERROR(CheckOwner(name, (*manifest)->client, client));
  if (FindLocked(name) != nullptr) {
    return absl::AlreadyExistsError(absl::StrCat("record_as: recording ", name, " is being written"));
  }
  if (options.continues) {
    if (!manifest.ok()) return manifest.status();
    options.request_digest = (*manifest)->request_digest;  // this request may hold only the remaining sequences
  } else if (!absl::IsNotFound(manifest.status())) {
    return absl::AlreadyExistsError(
        absl::StrCat("record_as: recording ", name, " exists; continue it with its resume token or give another name"));
  } else {
    RETURN_IF_ERROR(CheckRecordingQuota(client));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<RecordingSession> session,
                   RecordingSession::Start(engine_, catalog_, std::move(options), client));
  sessions_[name] = session;
  return std::make_shared<RecordedCapture>(std::move(session));
}

}  // namespace hookline
