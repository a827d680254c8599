// The call RecordingService.MergeRecordings.
#ifndef HOOKLINE_SERVER_SERVICE_MERGE_CALL_H_
#define HOOKLINE_SERVER_SERVICE_MERGE_CALL_H_

#include <atomic>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "hookline/v1/recording_service.pb.h"
#include "server/recorder/recorder.h"
#include "server/recording/merge.h"
#include "server/service/auth/authenticator.h"
#include "server/service/stream_call.h"
#include "server/service/task_threads.h"

namespace hookline {

// Merges recordings slice by slice, in turn with the verifications on `disk`'s thread. `running` counts the calls of
// both kinds. When the client leaves, what was made so far is removed.
class MergeCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  MergeCall(Recorder* recorder, TaskThreads* disk, std::atomic<int>* running)
      : StreamCall("MergeRecordings", disk), recorder_(recorder), running_(running), others_((*running)++) {}
  ~MergeCall() override { --*running_; }

  void Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request);

 private:
  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Written() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Open(const v1::MergeRecordingsRequest& request, const ClientIdentity& client);
  // Does one slice, and posts itself for the next one until there is progress to report.
  void Work();

  Recorder* const recorder_;
  std::atomic<int>* const running_;
  const int others_;  // the calls of both kinds that ran or waited at the start
  // Only one task uses this at a time. A task also destroys it, since that removes files.
  std::unique_ptr<RecordingMerge> merge_;
  v1::MergeRecordingsResponse progress_ ABSL_GUARDED_BY(mutex_);
  bool has_news_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_MERGE_CALL_H_
