#include "server/service/capture_service.h"

#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "grpc/support/time.h"
#include "grpcpp/alarm.h"
#include "server/base/status.h"
#include "server/service/capture_call.h"
#include "server/service/capture_status_conversion.h"
#include "server/service/exceptions.h"
#include "server/service/plain_call.h"
#include "server/service/wire/request_parser.h"

namespace hookline {
namespace {

absl::StatusOr<std::shared_ptr<Capture>> Start(Engine& engine, Recorder* recorder, CaptureRequest request,
                                               const AuthClient& client, CaptureCallbacks callbacks) {
  if (request.record_as.empty()) {
    ASSIGN_OR_RETURN(CapturePlan plan, engine.Plan(std::move(request)));
    return engine.Start(std::move(plan), client.identity, std::move(callbacks));
  }
  RETURN_IF_ERROR(RequireRole(client, Role::kRecord, "record_as"));
  if (recorder == nullptr) {
    return absl::UnimplementedError("record_as: this server keeps no recordings (--recordings-dir)");
  }
  const std::string name = request.record_as;
  return recorder->Record(name, std::move(request), client.identity, std::move(callbacks));
}

absl::StatusOr<grpc::ByteBuffer> EncodedEstimate(const Engine& engine, CaptureRequest request) {
  ASSIGN_OR_RETURN(const CapturePlan plan, engine.Plan(std::move(request)));
  const CaptureEstimate estimate = engine.Estimate(plan);
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
  return Serialized(message);
}

class UnaryCaptureCall final : public CaptureCall<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  UnaryCaptureCall(TaskThreads* threads, std::shared_ptr<SharedMemory> memory, TextRequests* texts)
      : CaptureCall("Capture", threads, std::move(memory)), texts_(texts) {}

  void Begin(Engine& engine, Recorder* recorder, const absl::StatusOr<AuthClient>& client,
             const grpc::ByteBuffer& message) {
    if (!client.ok()) return Refuse(client.status());
    absl::Status status = CatchExceptions("Capture", [&] { return StartCapture(engine, recorder, *client, message); });
    if (!status.ok()) Refuse(std::move(status));
  }

 private:
  absl::Status StartCapture(Engine& engine, Recorder* recorder, const AuthClient& client,
                            const grpc::ByteBuffer& message) {
    ASSIGN_OR_RETURN(CaptureRequest request, ParseCaptureRequest(message, engine.options().token_limits()));
    if (!TextRequests::HasText(request)) return StartPrepared(engine, recorder, client, std::move(request));
    // Texts wait in the form in which they came (TextRequests::threads).
    PostOn(&texts_->threads(), [this, &engine, recorder, client, message] {
      absl::StatusOr<CaptureRequest> request = ParseCaptureRequest(message, engine.options().token_limits());
      absl::Status status =
          request.ok() ? StartPrepared(engine, recorder, client, *std::move(request)) : request.status();
      if (!status.ok()) Refuse(std::move(status));
    });
    return absl::OkStatus();
  }

  absl::Status StartPrepared(Engine& engine, Recorder* recorder, const AuthClient& client, CaptureRequest request) {
    RETURN_IF_ERROR(texts_->Prepare(&request));
    const Encoding encoding = request.encoding;
    ASSIGN_OR_RETURN(std::shared_ptr<Capture> capture,
                     Start(engine, recorder, std::move(request), client, callbacks()));
    Run(std::move(capture), encoding);
    return absl::OkStatus();
  }

  TextRequests* const texts_;
};

// Reads while the engine has room. One read is in flight at a time, so OnReadDone runs on one thread at a time.
class StreamedCaptureCall final : public CaptureCall<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>> {
 public:
  StreamedCaptureCall(TaskThreads* threads, std::shared_ptr<SharedMemory> memory, Engine& engine, Recorder* recorder,
                      TextRequests* texts, absl::StatusOr<AuthClient> client)
      : CaptureCall("CaptureStream", threads, std::move(memory)),
        engine_(engine),
        recorder_(recorder),
        texts_(texts),
        client_(std::move(client)) {}

  void Begin() {
    if (!client_.ok()) return Refuse(client_.status());
    StartRead(&input_);
  }

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
    } else if (ok) {
      AddMessage(running);
    } else if (is_recorded_) {
      FinishSourceOfTheLiving(running);
    } else {
      running->FinishSource();
    }
  }

  // Finishes the source soon, unless OnCancel has cancelled the capture by then. gRPC reports in the same way that the
  // client has sent everything and that it is gone; only the latter is reported by OnCancel too, before or after. A
  // recording must not become complete because its client was killed.
  void FinishSourceOfTheLiving(std::shared_ptr<Capture> running) {
    const gpr_timespec soon =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(kCancelMillis, GPR_TIMESPAN));
    // The alarm keeps this function as long as itself, so the function must release what it holds when it is called.
    source_end_.Set(soon, [self = this->shared_from_this(), this, running = std::move(running)](bool) mutable {
      const auto held = std::move(self);
      const std::shared_ptr<Capture> capture = std::move(running);
      Guard([&] { capture->FinishSource(); });
    });
  }

  static absl::Status FirstMessageMissing(absl::string_view instead) {
    return InvalidField("request", absl::StrCat("must be the first message of the stream; ", instead));
  }

  absl::Status StartCapture() {
    ASSIGN_OR_RETURN(auto message, ParseCaptureStreamRequest(input_, engine_.options().token_limits()));
    auto* request = std::get_if<CaptureRequest>(&message);
    if (request == nullptr) {
      return FirstMessageMissing(std::holds_alternative<TextSource>(message) ? "it holds `text`" : "it holds `tokens`");
    }
    if (!std::holds_alternative<std::monostate>(request->source)) {
      const char* field = std::holds_alternative<TokenBatch>(request->source)      ? "request.tokens"
                          : std::holds_alternative<TextSource>(request->source)    ? "request.text"
                          : std::holds_alternative<DatasetSource>(request->source) ? "request.dataset"
                                                                                   : "request.feed";
      return InvalidField(field, "CaptureStream takes its sequences from later messages, so `request` has no source");
    }
    request->source = StreamedSource{};
    RETURN_IF_ERROR(texts_->Prepare(request));
    model_ = request->model;
    is_recorded_ = !request->record_as.empty();
    const Encoding encoding = request->encoding;
    ASSIGN_OR_RETURN(std::shared_ptr<Capture> capture,
                     Start(engine_, recorder_, std::move(*request), *client_, callbacks()));
    Run(std::move(capture), encoding);
    return absl::OkStatus();
  }

  void AddMessage(const std::shared_ptr<Capture>& running) {
    auto message = ParseCaptureStreamRequest(input_, engine_.options().token_limits());
    if (!message.ok()) return EndSource(*running, message.status());
    if (TokenBatch* tokens = std::get_if<TokenBatch>(&*message); tokens != nullptr) {
      return AddTokens(*running, std::move(*tokens));
    }
    if (!std::holds_alternative<TextSource>(*message)) {
      return EndSource(*running, InvalidField("request",
                                              "is accepted as the first message only; this one must be "
                                              "`tokens` or `text`"));
    }
    // The next message is read when this one's tokens have been added.
    PostOn(&texts_->threads(), [this, running] {
      auto again = ParseCaptureStreamRequest(input_, engine_.options().token_limits());
      if (!again.ok()) return EndSource(*running, again.status());
      absl::StatusOr<TokenBatch> batch = texts_->Encode(model_, std::get<TextSource>(*again));
      if (!batch.ok()) return EndSource(*running, batch.status());
      AddTokens(*running, *std::move(batch));
    });
  }

  // Serves everything before the message, then ends the call with the error.
  void EndSource(Capture& running, absl::Status error) {
    EndWith(std::move(error));
    running.FinishSource();
  }

  void AddTokens(Capture& running, TokenBatch tokens) {
    {
      absl::MutexLock lock(&read_mutex_);
      room_ = false;
    }
    absl::StatusOr<bool> room = running.AddSequences(std::move(tokens));
    // An error has ended the capture, whose summary ends the call.
    if (!room.ok()) return;
    if (*room) return StartUnlessFinished([this] { StartRead(&input_); });
    absl::MutexLock lock(&read_mutex_);
    waiting_for_room_ = !room_;
    if (room_) StartUnlessFinished([this] { StartRead(&input_); });
  }

  // This may run before the AddSequences that found no room has returned.
  void OnSourceRoom() override {
    absl::MutexLock lock(&read_mutex_);
    room_ = true;
    if (!waiting_for_room_) return;
    waiting_for_room_ = false;
    StartUnlessFinished([this] { StartRead(&input_); });
  }

  Engine& engine_;
  Recorder* const recorder_;
  TextRequests* const texts_;
  const absl::StatusOr<AuthClient> client_;
  // The longest time from the end of a cancelled call's messages to OnCancel: microseconds, and more only if threads
  // wait for a processor.
  static constexpr int64_t kCancelMillis = 100;

  std::string model_;         // of the request; set before the second message is read
  bool is_recorded_ = false;  // likewise
  grpc::Alarm source_end_;
  // gRPC uses this while a read is in flight, otherwise OnReadDone does.
  grpc::ByteBuffer input_;
  absl::Mutex read_mutex_;
  // True if there has been room since the last AddSequences.
  bool room_ ABSL_GUARDED_BY(read_mutex_) = false;
  bool waiting_for_room_ ABSL_GUARDED_BY(read_mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* CaptureServiceImpl::Capture(grpc::CallbackServerContext* context,
                                                                        const grpc::ByteBuffer* request) {
  CallRecord record;
  const absl::StatusOr<AuthClient> client = caller_.Authorize(*context, "/hookline.v1.CaptureService/Capture", &record);
  auto call = std::make_shared<UnaryCaptureCall>(wakes_, TakeOffered(memories_, *context, caller_.uid()), texts_);
  call->Keep(context, std::move(record));
  call->Begin(*engine_, recorder_, client, *request);
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* CaptureServiceImpl::CaptureStream(
    grpc::CallbackServerContext* context) {
  CallRecord record;
  absl::StatusOr<AuthClient> client = caller_.Authorize(*context, "/hookline.v1.CaptureService/CaptureStream", &record);
  auto call = std::make_shared<StreamedCaptureCall>(wakes_, TakeOffered(memories_, *context, caller_.uid()), *engine_,
                                                    recorder_, texts_, std::move(client));
  call->Keep(context, std::move(record));
  call->Begin();
  return call.get();
}

grpc::ServerUnaryReactor* CaptureServiceImpl::EstimateCapture(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request,
                                                              grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  CallRecord record;
  const absl::Status allowed =
      caller_.Authorize(*context, "/hookline.v1.CaptureService/EstimateCapture", &record).status();
  if (!allowed.ok()) {
    FinishRecorded(reactor, std::move(record), allowed, *response);
    return reactor;
  }
  // `response`, which is gRPC's, and the reactor are valid until Finish.
  const auto answer = [this, reactor, response, record](absl::StatusOr<CaptureRequest> parsed) {
    const absl::Status status = CatchExceptions("EstimateCapture", [&]() -> absl::Status {
      RETURN_IF_ERROR(parsed.status());
      RETURN_IF_ERROR(texts_->Prepare(&*parsed));
      ASSIGN_OR_RETURN(*response, EncodedEstimate(*engine_, *std::move(parsed)));
      return absl::OkStatus();
    });
    FinishRecorded(reactor, record, status, *response);
  };
  absl::StatusOr<CaptureRequest> parsed = absl::UnknownError("not parsed");
  const absl::Status status = CatchExceptions("EstimateCapture", [&] {
    parsed = ParseEstimateCaptureRequest(*request, engine_->options().token_limits());
    return parsed.status();
  });
  if (!status.ok()) {
    answer(status);
  } else if (TextRequests::HasText(*parsed)) {
    texts_->threads().Post([this, answer, message = *request] {
      answer(ParseEstimateCaptureRequest(message, engine_->options().token_limits()));
    });
  } else {
    answer(std::move(parsed));
  }
  return reactor;
}

grpc::ServerUnaryReactor* CaptureServiceImpl::ListCaptures(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& client, const v1::ListCapturesRequest& /*request*/,
                        v1::ListCapturesResponse* out) {
    for (const CaptureStatus& status : engine_->ListCaptures(client.identity)) *out->add_captures() = ToProto(status);
    const EngineSnapshot snapshot = engine_->Snapshot();
    out->set_free_slabs(snapshot.slabs_free);
    out->set_slabs(engine_->options().slab_count);
    out->set_slab_bytes(engine_->options().slab_bytes);
    out->set_max_captures(engine_->options().max_captures);
    return absl::OkStatus();
  };
  return AnswerCall<v1::ListCapturesRequest, v1::ListCapturesResponse>(
      caller_, context, "/hookline.v1.CaptureService/ListCaptures", *request, response, fill);
}

grpc::ServerUnaryReactor* CaptureServiceImpl::StopCapture(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& client, const v1::StopCaptureRequest& stop,
                        v1::StopCaptureResponse* /*out*/) { return engine_->StopCapture(stop.id(), client.identity); };
  return AnswerCall<v1::StopCaptureRequest, v1::StopCaptureResponse>(
      caller_, context, "/hookline.v1.CaptureService/StopCapture", *request, response, fill);
}

}  // namespace hookline
