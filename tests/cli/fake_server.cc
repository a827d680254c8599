#include "tests/cli/fake_server.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"

namespace hookline::cli {
namespace {

constexpr int kChunkRows = 2;
constexpr int64_t kRowCap = 1000;
constexpr absl::Duration kPatience = absl::Seconds(20);
const char* const kHookPoints[] = {"blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "odd/name"};

v1::Model FakeModel() {
  v1::Model model;
  model.set_name("fake");
  model.set_architecture("counting");
  model.set_layers(2);
  model.set_width(kFakeWidth);
  model.set_heads(1);
  model.set_context_length(8);
  model.set_vocabulary_size(300);
  model.set_dtype(v1::DTYPE_FLOAT32);
  model.set_device("cpu");
  model.set_fingerprint("00112233445566778899aabbccddeeff");
  model.set_parameters(1234567);
  return model;
}

}  // namespace

struct FakeServer::Call {
  std::function<bool(const v1::CaptureResponse&)> write;
  v1::CaptureRequest request = {};
  std::vector<int64_t> budgets = {};
  std::vector<int64_t> rows = {};        // that were sent, by hook point
  int64_t sequence = 0;                  // the next one to send
  int position = 0;                      // at which the next row group of that sequence begins
  int hook_points_done = 0;              // of that row group, sent by the previous call
  std::vector<int64_t> first_rows = {};  // with which the call began, by hook point
  int chunks_left = -1;                  // until the call breaks; -1: it does not
  bool sends_summary = false;            // before the call breaks

  std::string Token() const {
    return absl::StrCat(sequence, " ", position, " ", hook_points_done, " ", absl::StrJoin(rows, " "));
  }
  bool full() const {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] < budgets[i]) return false;
    }
    return true;
  }
};

FakeServer::FakeServer() {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
  builder.RegisterService(static_cast<v1::CaptureService::Service*>(this));
  server_ = builder.BuildAndStart();
  address_ = absl::StrCat("127.0.0.1:", port);
}

FakeServer::~FakeServer() {
  SetFrozen(false);
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

void FakeServer::BreakAfter(int chunks) {
  absl::MutexLock lock(&mutex_);
  breaks_.push_back({chunks, /*sends_summary=*/false});
}

void FakeServer::ShutDownAfter(int chunks) {
  absl::MutexLock lock(&mutex_);
  breaks_.push_back({chunks, /*sends_summary=*/true});
}

void FakeServer::SetFingerprint(const std::string& fingerprint) {
  absl::MutexLock lock(&mutex_);
  fingerprint_ = fingerprint;
}

void FakeServer::SetAway(bool is_away) {
  absl::MutexLock lock(&mutex_);
  is_away_ = is_away;
}

void FakeServer::SetFrozen(bool is_frozen) {
  absl::MutexLock lock(&mutex_);
  is_frozen_ = is_frozen;
}

void FakeServer::OnAskedWhileFrozen(std::function<void()> on_asked) {
  absl::MutexLock lock(&mutex_);
  on_asked_ = std::move(on_asked);
}

bool FakeServer::WaitUntilStarted() {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&started_), kPatience);
}

bool FakeServer::WaitUntilCancelled() {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), kPatience);
}

std::vector<std::vector<uint32_t>> FakeServer::sequences() const {
  absl::MutexLock lock(&mutex_);
  return sequences_;
}

int64_t FakeServer::largest_message_bytes() const {
  absl::MutexLock lock(&mutex_);
  return largest_message_bytes_;
}

std::vector<v1::CaptureRequest> FakeServer::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

grpc::Status FakeServer::ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                                    v1::ListModelsResponse* response) {
  *response->add_models() = FakeModel();
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetModel(grpc::ServerContext*, const v1::GetModelRequest* request, v1::Model* model) {
  if (!request->name().empty() && request->name() != "fake") {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("no model ", request->name(), "; there is fake"));
  }
  *model = FakeModel();
  {
    absl::MutexLock lock(&mutex_);
    if (is_frozen_ && on_asked_ != nullptr) on_asked_();
    mutex_.Await(absl::Condition(this, &FakeServer::is_thawed));
    if (is_away_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is away");
    model->set_fingerprint(fingerprint_);
  }
  for (const char* name : kHookPoints) {
    v1::HookPoint& point = *model->add_hook_points();
    point.set_name(name);
    point.set_width(kFakeWidth);
    point.set_description("The token as a number.");
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::Start(const v1::CaptureRequest& request, Call* call) {
  call->request = request;
  v1::CaptureResponse response;
  v1::CaptureStarted& started = *response.mutable_started();
  {
    absl::MutexLock lock(&mutex_);
    if (is_away_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is away");
    requests_.push_back(request);
    started.set_fingerprint(fingerprint_);
    if (!breaks_.empty()) {
      call->chunks_left = breaks_.front().chunks;
      call->sends_summary = breaks_.front().sends_summary;
      breaks_.pop_front();
    }
  }
  started.set_model("fake");
  started.set_dtype(v1::DTYPE_FLOAT32);
  for (const std::string& name : request.hook_points()) {
    if (std::find(std::begin(kHookPoints), std::end(kHookPoints), name) == std::end(kHookPoints)) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          absl::StrCat("hook_points[0]: `", name, "` is not a hook point;\nnearest: odd/name"));
    }
    int64_t budget = request.has_max_activations() ? request.max_activations() : kRowCap;
    auto other = request.max_activations_by_hook_point().find(name);
    if (other != request.max_activations_by_hook_point().end()) budget = other->second;
    v1::HookPointGrant& grant = *started.add_hook_points();
    grant.set_hook_point(name);
    grant.set_width(kFakeWidth);
    grant.set_max_activations(std::min(budget, kRowCap));
    grant.set_clipped(budget > kRowCap);
    call->budgets.push_back(grant.max_activations());
  }
  call->rows.assign(call->budgets.size(), 0);
  if (!request.resume_token().empty()) {
    std::vector<std::string> parts = absl::StrSplit(request.resume_token(), ' ');
    if (parts.size() != 3 + call->rows.size()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "resume_token");
    call->sequence = std::stoll(parts[0]);
    call->position = std::stoi(parts[1]);
    call->hook_points_done = std::stoi(parts[2]);
    for (size_t i = 0; i < call->rows.size(); ++i) call->rows[i] = std::stoll(parts[3 + i]);
  }
  call->first_rows = call->rows;
  started.set_next_sequence(call->sequence);
  started.set_resume_token(call->Token());
  call->write(response);
  absl::MutexLock lock(&mutex_);
  started_ = true;
  return grpc::Status::OK;
}

grpc::Status FakeServer::SendSequence(Call& call, const std::vector<uint32_t>& ids) {
  while (call.position < static_cast<int>(ids.size()) && !call.full()) {
    const int group_rows = std::min(kChunkRows, static_cast<int>(ids.size()) - call.position);
    const int group_position = call.position;
    for (int i = call.hook_points_done; i < call.request.hook_points_size(); ++i) {
      const int rows = static_cast<int>(std::min<int64_t>(group_rows, call.budgets[i] - call.rows[i]));
      if (rows > 0) {
        if (call.chunks_left == 0) {
          if (call.sends_summary) SendSummary(call, v1::STOP_REASON_SHUTTING_DOWN);
          return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the connection broke");
        }
        if (call.chunks_left > 0) --call.chunks_left;
        {
          absl::MutexLock lock(&mutex_);
          mutex_.Await(absl::Condition(this, &FakeServer::is_thawed));
        }
        v1::CaptureResponse response;
        v1::ActivationChunk& chunk = *response.mutable_chunk();
        chunk.set_hook_point(call.request.hook_points(i));
        chunk.set_first_row(call.rows[i]);
        chunk.set_rows(rows);
        chunk.set_width(kFakeWidth);
        chunk.set_dtype(v1::DTYPE_FLOAT32);
        for (int row = 0; row < rows; ++row) {
          const uint32_t token = ids[group_position + row];
          for (int column = 0; column < kFakeWidth; ++column) {
            const float value = FakeValue(call.request.hook_points(i), token, column);
            chunk.mutable_data()->append(reinterpret_cast<const char*>(&value), sizeof(value));
          }
          if (!call.request.provenance()) continue;
          chunk.add_sequence(call.sequence);
          chunk.add_position(group_position + row);
          chunk.add_token_id(token);
          chunk.add_token_text(absl::StrCat("<", token, ">"));
        }
        call.rows[i] += rows;
        call.hook_points_done = i + 1;
        chunk.set_resume_token(call.Token());
        if (!call.write(response)) return grpc::Status::CANCELLED;
      }
    }
    call.hook_points_done = 0;
    call.position += group_rows;
  }
  ++call.sequence;
  call.position = 0;
  return grpc::Status::OK;
}

void FakeServer::SendSummary(Call& call, v1::StopReason reason) {
  v1::CaptureResponse response;
  v1::CaptureSummary& summary = *response.mutable_summary();
  summary.set_stop_reason(reason);
  summary.set_batches(1);
  for (size_t i = 0; i < call.rows.size(); ++i) {
    v1::HookPointSummary& point = *summary.add_hook_points();
    point.set_hook_point(call.request.hook_points(static_cast<int>(i)));
    point.set_rows(call.rows[i]);
    point.set_statistics_rows(call.rows[i] - call.first_rows[i]);
    point.set_mean_row_norm(12.5);
    point.set_nan_count(3);
  }
  summary.set_resume_token(call.Token());
  call.write(response);
}

grpc::Status FakeServer::End(Call& call) {
  SendSummary(call, call.full() ? v1::STOP_REASON_BUDGET : v1::STOP_REASON_SOURCE_ENDED);
  return grpc::Status::OK;
}

grpc::Status FakeServer::Capture(grpc::ServerContext*, const v1::CaptureRequest* request,
                                 grpc::ServerWriter<v1::CaptureResponse>* writer) {
  Call call{[writer](const v1::CaptureResponse& response) { return writer->Write(response); }};
  grpc::Status status = Start(*request, &call);
  for (uint32_t i = call.sequence; status.ok() && i < 5 && !call.full(); ++i)
    status = SendSequence(call, {i, i + 1, i + 2});
  return status.ok() ? End(call) : status;
}

grpc::Status FakeServer::CaptureStream(
    grpc::ServerContext* context, grpc::ServerReaderWriter<v1::CaptureResponse, v1::CaptureStreamRequest>* stream) {
  v1::CaptureStreamRequest message;
  if (!stream->Read(&message)) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no request");
  Call call{[stream](const v1::CaptureResponse& response) { return stream->Write(response); }};
  grpc::Status status = Start(message.request(), &call);
  while (status.ok() && !call.full() && stream->Read(&message)) {
    {
      absl::MutexLock lock(&mutex_);
      largest_message_bytes_ = std::max(largest_message_bytes_, static_cast<int64_t>(message.ByteSizeLong()));
    }
    for (const v1::TokenSequence& sequence : message.tokens().sequences()) {
      const std::vector<uint32_t> ids(sequence.ids().begin(), sequence.ids().end());
      {
        absl::MutexLock lock(&mutex_);
        sequences_.push_back(ids);
      }
      if (status.ok()) status = SendSequence(call, ids);
    }
  }
  if (context->IsCancelled()) {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    return grpc::Status::CANCELLED;
  }
  return status.ok() ? End(call) : status;
}

}  // namespace hookline::cli
