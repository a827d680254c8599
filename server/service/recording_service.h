// The proto RecordingService in front of the recorder and its catalog.
#ifndef HOOKLINE_SERVER_SERVICE_RECORDING_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_RECORDING_SERVICE_H_

#include <atomic>

#include "hookline/v1/recording_service.grpc.pb.h"
#include "server/recorder/recorder.h"
#include "server/service/auth/caller.h"
#include "server/service/shared_memory/listener.h"
#include "server/service/task_threads.h"
#include "server/service/text_requests.h"

namespace hookline {

// The methods are raw: Persist's request holds token sequences, ReadRecording answers as Capture does, and for the
// others a request's size is known before it is parsed (plain_call.h).
using RawRecordingService =
    v1::RecordingService::WithRawCallbackMethod_Persist<v1::RecordingService::WithRawCallbackMethod_ReadRecording<
        v1::RecordingService::WithRawCallbackMethod_ListRecordings<
            v1::RecordingService::WithRawCallbackMethod_GetRecording<
                v1::RecordingService::WithRawCallbackMethod_StopRecording<
                    v1::RecordingService::WithRawCallbackMethod_DeleteRecording<
                        v1::RecordingService::WithRawCallbackMethod_VerifyRecording<
                            v1::RecordingService::WithRawCallbackMethod_MergeRecordings<
                                v1::RecordingService::Service>>>>>>>>;

// The threads that the recording services of all the server's origins share.
struct RecordingThreads {
  TaskThreads wakes;
  TaskThreads disk;                   // separate, so that waits for a disk do not hold up woken calls
  std::atomic<int> verifications{0};  // verifications and merges that run or wait
  // Verifications and merges read whole recordings, so they have a thread of their own, on which they take turns slice
  // by slice.
  TaskThreads verify{1};
};

class RecordingServiceImpl final : public RawRecordingService {
 public:
  // All must outlive the server that this service is registered with.
  RecordingServiceImpl(const CallerCheck& caller, Recorder* recorder, SharedMemoryListener* memories,
                       TextRequests* texts, RecordingThreads* threads)
      : caller_(caller), recorder_(recorder), memories_(memories), texts_(texts), threads_(threads) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Persist(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* ListRecordings(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetRecording(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* StopRecording(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteRecording(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* VerifyRecording(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* MergeRecordings(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ReadRecording(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer* request) override;

 private:
  const CallerCheck caller_;
  Recorder* const recorder_;
  SharedMemoryListener* const memories_;
  TextRequests* const texts_;
  RecordingThreads* const threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_RECORDING_SERVICE_H_
