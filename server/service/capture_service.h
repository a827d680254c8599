// The proto CaptureService in front of the engine.
#ifndef HOOKLINE_SERVER_SERVICE_CAPTURE_SERVICE_H_
#define HOOKLINE_SERVER_SERVICE_CAPTURE_SERVICE_H_

#include "hookline/v1/capture_service.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/recorder/recorder.h"
#include "server/service/auth/caller.h"
#include "server/service/shared_memory/listener.h"
#include "server/service/task_threads.h"
#include "server/service/text_requests.h"

namespace hookline {

// The methods are raw: responses are encoded without copying values, and requests are parsed by wire/request_parser.h
// and plain_call.h.
using RawCaptureService = v1::CaptureService::WithRawCallbackMethod_Capture<
    v1::CaptureService::WithRawCallbackMethod_CaptureStream<v1::CaptureService::WithRawCallbackMethod_EstimateCapture<
        v1::CaptureService::WithRawCallbackMethod_ListCaptures<
            v1::CaptureService::WithRawCallbackMethod_StopCapture<v1::CaptureService::Service>>>>>;

class CaptureServiceImpl final : public RawCaptureService {
 public:
  // All must outlive the server that this service is registered with. Without a recorder, captures with `record_as` are
  // UNIMPLEMENTED. Woken calls continue on `wakes`.
  CaptureServiceImpl(const CallerCheck& caller, Engine* engine, Recorder* recorder, SharedMemoryListener* memories,
                     TextRequests* texts, TaskThreads* wakes)
      : caller_(caller), engine_(engine), recorder_(recorder), memories_(memories), texts_(texts), wakes_(wakes) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Capture(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* CaptureStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* EstimateCapture(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListCaptures(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* StopCapture(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;

 private:
  const CallerCheck caller_;
  Engine* const engine_;
  Recorder* const recorder_;
  SharedMemoryListener* const memories_;
  TextRequests* const texts_;
  TaskThreads* const wakes_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CAPTURE_SERVICE_H_
