// A capture whose rows land in memory that the caller owns, batch by batch. This is what c_api.h promises, in C++.
#ifndef HOOKLINE_CLIENT_CPP_BATCHED_CAPTURE_H_
#define HOOKLINE_CLIENT_CPP_BATCHED_CAPTURE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/node_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/capture_call.h"
#include "client/cpp/resumable_capture.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/base/steady.h"

namespace hookline::client {

// The buffers of one batch. They belong to the capture from Submit until Wait returns the batch or the capture
// is destroyed.
struct BatchBuffers {
  // The batch takes this many rows of each hook point, at least 1; fewer where a budget ends.
  int64_t rows = 0;
  // The buffers for the rows of each hook point, row-major; null where the budget leaves no rows.
  std::vector<uint8_t*> data;
  // Provenance columns of `rows` entries, all or none.
  int64_t* sequence = nullptr;
  int32_t* position = nullptr;
  uint32_t* token_id = nullptr;
};

// Thread-safe, but one thread at a time may call Submit, one may call Wait and Resume, and one WriteTokens
// and FinishTokens.
class BatchedCapture {
 public:
  // The most batches that are submitted and not yet waited for.
  static constexpr size_t kMaxSubmitted = 1024;
  // The most tokens whose texts are kept: several times the largest vocabularies of published models.
  static constexpr size_t kMaxTokenTexts = size_t{1} << 21;

  // Calls `method`, whose answers are CaptureResponses, with an encoded request.
  BatchedCapture(Connection connection, std::string method, const std::string& request, bool streams_tokens);
  // Cancels, and returns when nothing is written to buffers any more.
  ~BatchedCapture();
  BatchedCapture(const BatchedCapture&) = delete;
  BatchedCapture& operator=(const BatchedCapture&) = delete;

  // Waits for the current call's CaptureStarted and returns it encoded; valid until the next Resume. Null: the
  // timeout passed.
  absl::StatusOr<const std::string*> Started(absl::Duration timeout);

  // Returns the number of hook points granted; 0 before `started`.
  int hook_points() const;

  // INVALID_ARGUMENT: the batch contradicts the capture; RESOURCE_EXHAUSTED: too many batches;
  // FAILED_PRECONDITION: before `started`.
  absl::Status Submit(const BatchBuffers& batch);

  enum class WaitResult { kBatch, kEnd, kTimeout };
  // Waits until the oldest submitted batch is finished. Sets `rows`, one entry for each hook point, to how many rows
  // that batch holds, also with an error.
  absl::StatusOr<WaitResult> Wait(absl::Duration timeout, int64_t* rows);

  struct Progress {
    int64_t submitted = 0;  // batches that were submitted
    int64_t returned = 0;   // those of them that Wait returned
  };
  Progress progress() const;

  std::string resume_token() const { return capture_.resume_token(); }

  // Calls again with `request` after an error of Wait. FAILED_PRECONDITION: there was no error.
  absl::Status Resume(const std::string& request);

  // Returns the model's spelling of a token if rows of it have arrived with their text, else null. It is valid as long
  // as the capture.
  const std::string* TokenText(uint32_t token_id) const;

  // Returns false if the call is over; Wait reports how it ended.
  bool WriteTokens(const v1::TokenBatch& tokens);
  void FinishTokens();

  // Returns the CaptureSummary over all calls (ResumableCapture::summary), encoded, once this call's has arrived; valid
  // until the next Resume. Null before.
  const std::string* Summary() const;

  void Cancel();

 private:
  struct Batch {
    BatchBuffers buffers;
    int64_t first_row = 0;
    std::vector<int64_t> filled;  // rows for each hook point
  };
  // A part of a chunk for which no batch is submitted yet.
  struct Parked {
    Chunk chunk;
    int64_t done = 0;  // rows copied
  };

  // Makes a call with an encoded request and starts the thread that reads it.
  void StartCall(const std::string& request);
  void Run();
  absl::Status Take(CaptureEvent event);
  absl::Status TakeChunk(Chunk chunk);
  // Keeps the token texts of rows that no earlier chunk held.
  void KeepTexts(const v1::ActivationChunk& header) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Copies the rows of `parked` for which batches are submitted. Returns whether all of its rows are copied.
  bool CopyToBatches(Parked& parked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CopyRows(const Chunk& chunk, int64_t from, int64_t rows, Batch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsFinished(const Batch& batch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllBudgetsReached() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool HasRows(const Batch& batch);
  bool CanStopWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MustReadOn() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t RowBytes(int hook_point) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Connection connection_;
  const std::string method_;
  const bool streams_tokens_;
  std::string first_message_;  // the first message of the call that StartCall makes
  ResumableCapture capture_;

  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;  // notified when anything below changes that a thread can wait for
  const v1::CaptureStarted* granted_ ABSL_GUARDED_BY(mutex_) = nullptr;  // that of capture_, once it has started
  std::optional<std::string> started_ ABSL_GUARDED_BY(mutex_);           // that of this call, encoded
  std::optional<std::string> summary_ ABSL_GUARDED_BY(mutex_);
  std::deque<Batch> batches_ ABSL_GUARDED_BY(mutex_);    // submitted, oldest first
  std::deque<Parked> parked_ ABSL_GUARDED_BY(mutex_);    // in the order received
  std::vector<int64_t> placed_ ABSL_GUARDED_BY(mutex_);  // rows of each hook point in batches
  int64_t submitted_rows_ ABSL_GUARDED_BY(mutex_) = 0;   // first row of the next batch
  Progress progress_ ABSL_GUARDED_BY(mutex_);
  absl::node_hash_map<uint32_t, std::string> token_texts_ ABSL_GUARDED_BY(mutex_);  // by token id
  int64_t rows_with_texts_ ABSL_GUARDED_BY(mutex_) = 0;  // the first row whose text is not kept yet
  int64_t parked_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;  // the call has ended, with `status_`
  absl::Status status_ ABSL_GUARDED_BY(mutex_);

  std::thread reader_;  // replaced by Resume
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_BATCHED_CAPTURE_H_
