// A capture over several servers that hold the same model: its source is cut into blocks of sequences, which servers
// run as they become free, and rows come back in the order of the source.
//
//   SharedCapture capture(std::move(servers), request, /*next_sequence=*/nullptr);
//   RETURN_IF_ERROR(capture.Start());
//   while (true) {
//     ASSIGN_OR_RETURN(std::optional<Chunk> chunk, capture.Next());
//     if (!chunk.has_value()) break;
//   }
#ifndef HOOKLINE_CLIENT_CPP_SHARED_CAPTURE_H_
#define HOOKLINE_CLIENT_CPP_SHARED_CAPTURE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/capture_response.h"
#include "client/cpp/sequence_blocks.h"
#include "client/cpp/server_fleet.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/base/steady.h"

namespace hookline::client {

// The number of blocks that a server runs at a time: while the rows of one are on their way, the device computes the
// next one.
inline constexpr size_t kServerBlocks = 2;
// The number of blocks that are open for each that runs: with as many blocks waiting for an earlier one as running, a
// server that is half as fast as the others does not hold them up.
inline constexpr size_t kWindowFactor = 2;
// The most bytes of rows of all open blocks. A block that is larger, because its only sequence is or because
// `deterministic` makes it hold a whole batch or message, is open alone.
inline constexpr int64_t kReorderBytes = int64_t{256} << 20;

// Says how a capture is shared; the Python client's `Sharing` has the same numbers.
struct SharingOptions {
  int64_t block_tokens = int64_t{1} << 14;  // the most tokens of a block: about two batches of a server
  int64_t reorder_bytes = kReorderBytes;
  absl::Duration silence = kSilence;
};

// Rows, their order, budgets and provenance are the same as from one server; with `deterministic` so are the bits, on
// equal hardware and with equal --max-batch-tokens. A block's rows are delivered when all of them have arrived, so that
// nothing is lost or doubled if a server dies or hangs: the block runs again on another one.
//
// Start, Next, started and summary belong to one thread; any thread may call Cancel and reruns.
class SharedCapture {
 public:
  // `request` has a dataset as its source, or no source; then `next_sequence`, which another thread calls, gives the
  // sequences. If `next_sequence` can wait for ever, its owner must make it return before this object is destroyed.
  // `servers` are at least one, connected with kAnswerTime as time-out and without shared memory, of which waiting
  // blocks would keep too much.
  SharedCapture(std::vector<NamedServer> servers, v1::CaptureRequest request, NextSequence next_sequence,
                const SharingOptions& options = {});
  // Cancels.
  ~SharedCapture();
  SharedCapture(const SharedCapture&) = delete;
  SharedCapture& operator=(const SharedCapture&) = delete;

  // Blocks until each server has answered or failed to, and one has granted the whole capture. INVALID_ARGUMENT: the
  // capture needs one server; FAILED_PRECONDITION: the servers do not hold the same model or dataset; the first one's
  // error if none answers; otherwise any error with which a server refuses the request.
  absl::Status Start();
  // Return the grant of the whole capture, and the servers that did not answer, with their errors. Call them
  // after Start.
  const v1::CaptureStarted& started() const { return started_; }
  const std::vector<std::string>& away() const { return away_; }

  // Blocks for the next rows; none at the end. `first_row` and the index of the hook point are those of the whole
  // capture; there is no resume token. Errors of the source and of servers about a block come after the rows before
  // them, as with one server; others come at once: CANCELLED; FAILED_PRECONDITION if a server that comes back holds
  // something else; UNAVAILABLE once every server has failed more than kMaxReconnects times.
  absl::StatusOr<std::optional<Chunk>> Next() ABSL_LOCKS_EXCLUDED(mutex_);

  // Returns the sum of the blocks' summaries, once Next has returned none.
  const v1::CaptureSummary& summary() const { return summary_; }
  // Returns how often blocks ran again.
  int reruns() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Makes Next return CANCELLED soon. Idempotent.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A block as servers run it.
  struct Task {
    SequenceBlock part;
    v1::CaptureRequest request;
  };
  struct Result {
    std::vector<Chunk> chunks;
    v1::CaptureStarted started;
    v1::CaptureSummary summary;
  };
  struct Block {
    std::shared_ptr<const Task> task;
    int64_t most_bytes = 0;
    std::optional<absl::StatusOr<Result>> result;  // none until all of it has arrived
    size_t taken = 0;                              // chunks that Next has taken
  };

  absl::Status CheckRequest() const;
  // Asks one server for its grant of the whole capture and, if there is a dataset, makes it check the request.
  absl::Status AskGrant(size_t server);
  absl::Status MakeSource(Client& client);
  // Runs `call` on a server that can be used, and again on another one if that server is gone.
  template <typename Call>
  absl::Status OnAnyServer(Call call);

  // The threads run these.
  void Plan() ABSL_LOCKS_EXCLUDED(mutex_);
  void Serve(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);

  // Returns whether a block of this many bytes may be opened.
  bool HasRoom(int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns the request of a block that follows `row` rows of the capture; none if no budget is left.
  std::optional<v1::CaptureRequest> RequestOf(const SequenceBlock& part, int64_t row) const;
  absl::StatusOr<Result> Run(size_t server, const Task& task);
  absl::Status CheckGrant(size_t server, const Task& task, const v1::CaptureStarted& started) const;
  static absl::Status CheckResult(const Task& task, const Result& result);
  void Fail(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Turns a chunk of the block into one of the whole capture; none if none of its rows is within the budget.
  std::optional<Chunk> Placed(const Task& task, Chunk chunk, int64_t rows_before) const;
  void FinishBlock() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishSummary(v1::StopReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t LargestBudget() const;
  size_t window() const { return fleet_.size() * kServerBlocks * kWindowFactor; }

  const v1::CaptureRequest request_;
  const NextSequence next_sequence_;
  const SharingOptions options_;

  // Start sets these before any thread reads them.
  v1::CaptureStarted started_;
  std::string granted_by_;
  int64_t row_bytes_ = 1;                   // the size of one row of all hook points
  std::map<std::string, int> hook_points_;  // indices, by name
  std::vector<std::string> away_;
  std::unique_ptr<BlockSource> source_;

  // Not held during calls of the fleet, which has a lock of its own.
  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;
  std::map<int64_t, Block> blocks_ ABSL_GUARDED_BY(mutex_);  // the open blocks, by number
  int64_t open_bytes_ ABSL_GUARDED_BY(mutex_) = 0;           // the most that their rows can have
  std::set<int64_t> pending_ ABSL_GUARDED_BY(mutex_);        // the open blocks that no server runs
  int64_t due_ ABSL_GUARDED_BY(mutex_) = 0;                  // the block whose rows are next
  int64_t delivered_ ABSL_GUARDED_BY(mutex_) = 0;            // rows of the blocks before it
  bool has_all_blocks_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status source_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int reruns_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::CaptureSummary summary_;  // merged from the blocks before the one that is due

  ServerFleet fleet_;
  std::vector<std::thread> threads_;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_SHARED_CAPTURE_H_
