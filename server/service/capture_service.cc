#include "server/service/capture_service.h"

#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "grpcpp/support/slice.h"
#include "server/base/status.h"
#include "server/service/capture_call.h"
#include "server/service/exceptions.h"
#include "server/service/peer_address.h"
#include "server/service/wire/request_parser.h"

namespace hookline {
namespace {

absl::StatusOr<std::shared_ptr<Capture>> Start(Engine& engine, Recorder* recorder, CaptureRequest request,
                                               const std::string& address, CaptureCallbacks callbacks) {
  if (request.record_as.empty()) {
    ASSIGN_OR_RETURN(CapturePlan plan, engine.Plan(std::move(request)));
    return engine.Start(std::move(plan), address, std::move(callbacks));
  }
  if (recorder == nullptr) {
    return absl::UnimplementedError("record_as: this server keeps no recordings (--recordings-dir)");
  }
  const std::string name = request.record_as;
  return recorder->Record(name, std::move(request), address, std::move(callbacks));
}

class UnaryCaptureCall final : public CaptureCall<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  UnaryCaptureCall(TaskThreads* threads, std::shared_ptr<SharedMemory> memory)
      : CaptureCall("Capture", threads, std::move(memory)) {}

  void Begin(Engine& engine, Recorder* recorder, const std::string& address, const grpc::ByteBuffer& message) {
    absl::Status status = CatchExceptions("Capture", [&] { return StartCapture(engine, recorder, address, message); });
    if (!status.ok()) Refuse(std::move(status));
  }

 private:
  absl::Status StartCapture(Engine& engine, Recorder* recorder, const std::string& address,
                            const grpc::ByteBuffer& message) {
    ASSIGN_OR_RETURN(CaptureRequest request, ParseCaptureRequest(message, engine.options().token_limits()));
    const Encoding encoding = request.encoding;
    ASSIGN_OR_RETURN(std::shared_ptr<Capture> capture,
                     Start(engine, recorder, std::move(request), address, callbacks()));
    Run(std::move(capture), encoding);
    return absl::OkStatus();
  }
};

// Reads while the engine has room. One read is in flight at a time, so OnReadDone runs on one thread at a time.
class StreamedCaptureCall final : public CaptureCall<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>> {
 public:
  StreamedCaptureCall(TaskThreads* threads, std::shared_ptr<SharedMemory> memory, Engine& engine, Recorder* recorder,
                      std::string address)
      : CaptureCall("CaptureStream", threads, std::move(memory)),
        engine_(engine),
        recorder_(recorder),
        address_(std::move(address)) {}

  void Begin() { StartRead(&input_); }

  void OnReadDone(bool ok) override {
    Guard([this, ok] { HandleRead(ok); });
  }

 private:
  void HandleRead(bool ok) {
    const std::shared_ptr<Capture> running = capture();
    if (running == nullptr) {
      absl::Status status = ok ? StartCapture() : FirstMessageMissing("the stream ended");
      if (!status.ok()) return Refuse(std::move(status));
      StartUnlessFinished([this] { StartRead(&input_); });
    } else if (!ok) {
      running->FinishSource();
    } else {
      AddTokens(*running);
    }
  }

  static absl::Status FirstMessageMissing(absl::string_view instead) {
    return InvalidField("request", absl::StrCat("must be the first message of the stream; ", instead));
  }

  absl::Status StartCapture() {
    ASSIGN_OR_RETURN(auto message, ParseCaptureStreamRequest(std::move(input_), engine_.options().token_limits()));
    auto* request = std::get_if<CaptureRequest>(&message);
    if (request == nullptr) return FirstMessageMissing("it holds `tokens`");
    if (!std::holds_alternative<std::monostate>(request->source)) {
      const char* field = std::holds_alternative<TokenBatch>(request->source)      ? "request.tokens"
                          : std::holds_alternative<DatasetSource>(request->source) ? "request.dataset"
                                                                                   : "request.feed";
      return InvalidField(field, "CaptureStream takes its sequences from later messages, so `request` has no source");
    }
    request->source = StreamedSource{};
    const Encoding encoding = request->encoding;
    ASSIGN_OR_RETURN(std::shared_ptr<Capture> capture,
                     Start(engine_, recorder_, std::move(*request), address_, callbacks()));
    Run(std::move(capture), encoding);
    return absl::OkStatus();
  }

  void AddTokens(Capture& running) {
    auto message = ParseCaptureStreamRequest(std::move(input_), engine_.options().token_limits());
    TokenBatch* tokens = message.ok() ? std::get_if<TokenBatch>(&*message) : nullptr;
    if (tokens == nullptr) {
      // Everything before this message is served, then the call ends with the error.
      EndWith(message.ok() ? InvalidField("request", "is accepted as the first message only; this one must be `tokens`")
                           : message.status());
      running.FinishSource();
      return;
    }
    {
      absl::MutexLock lock(&read_mutex_);
      room_ = false;
    }
    absl::StatusOr<bool> room = running.AddSequences(std::move(*tokens));
    // An error ends the capture, and with its summary the call.
    if (!room.ok()) return;
    if (*room) return StartUnlessFinished([this] { StartRead(&input_); });
    absl::MutexLock lock(&read_mutex_);
    waiting_for_room_ = !room_;
    if (room_) StartUnlessFinished([this] { StartRead(&input_); });
  }

  // May come before AddSequences, whose answer it follows, has returned here.
  void OnSourceRoom() override {
    absl::MutexLock lock(&read_mutex_);
    room_ = true;
    if (!waiting_for_room_) return;
    waiting_for_room_ = false;
    StartUnlessFinished([this] { StartRead(&input_); });
  }

  Engine& engine_;
  Recorder* const recorder_;
  const std::string address_;
  // With gRPC while a read is in flight, otherwise OnReadDone's.
  grpc::ByteBuffer input_;
  absl::Mutex read_mutex_;
  // There was room since the last AddSequences.
  bool room_ ABSL_GUARDED_BY(read_mutex_) = false;
  bool waiting_for_room_ ABSL_GUARDED_BY(read_mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* CaptureServiceImpl::Capture(grpc::CallbackServerContext* context,
                                                                        const grpc::ByteBuffer* request) {
  auto call = std::make_shared<UnaryCaptureCall>(&wakes_, TakeOffered(memories_, *context));
  call->Keep();
  call->Begin(*engine_, recorder_, PeerAddress(context->peer()), *request);
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* CaptureServiceImpl::CaptureStream(
    grpc::CallbackServerContext* context) {
  auto call = std::make_shared<StreamedCaptureCall>(&wakes_, TakeOffered(memories_, *context), *engine_, recorder_,
                                                    PeerAddress(context->peer()));
  call->Keep();
  call->Begin();
  return call.get();
}

grpc::ServerUnaryReactor* CaptureServiceImpl::EstimateCapture(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request,
                                                              grpc::ByteBuffer* response) {
  return AnswerCall(context, "EstimateCapture", [&]() -> absl::Status {
    ASSIGN_OR_RETURN(CaptureRequest parsed, ParseEstimateCaptureRequest(*request, engine_->options().token_limits()));
    ASSIGN_OR_RETURN(const CapturePlan plan, engine_->Plan(std::move(parsed)));
    const CaptureEstimate estimate = engine_->Estimate(plan);
    v1::EstimateCaptureResponse message;
    for (const CaptureEstimate::HookPoint& hook_point : estimate.hook_points) {
      v1::HookPointEstimate& out = *message.add_hook_points();
      out.set_hook_point(hook_point.name);
      out.set_rows(hook_point.rows);
      out.set_bytes(hook_point.bytes);
    }
    message.set_sequences(estimate.sequences);
    message.set_tokens(estimate.tokens);
    message.set_bytes(estimate.bytes);
    if (estimate.time.has_value()) message.set_seconds(absl::ToDoubleSeconds(*estimate.time));
    grpc::Slice encoded(message.SerializeAsString());
    *response = grpc::ByteBuffer(&encoded, 1);
    return absl::OkStatus();
  });
}

}  // namespace hookline
