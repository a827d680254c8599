#include "tests/client/capture_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace hookline::client {

CaptureServer::CaptureServer() {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  address_ = absl::StrCat("127.0.0.1:", port);
}

CaptureServer::~CaptureServer() {
  Release();
  Shutdown();
}

void CaptureServer::Set(Script script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

void CaptureServer::Release() {
  absl::MutexLock lock(&mutex_);
  released_ = true;
}

void CaptureServer::AwaitAbandoned() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&abandoned_));
}

std::vector<std::vector<uint32_t>> CaptureServer::sequences() const {
  absl::MutexLock lock(&mutex_);
  return sequences_;
}

void CaptureServer::Shutdown() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

// A resume token is "ROW HOOK_POINT": the first row group and the first hook point in it that were not sent.
template <typename Stream>
grpc::Status CaptureServer::Run(const v1::CaptureRequest& request, Stream* stream) {
  Script script;
  int chunks_left = -1;
  {
    absl::MutexLock lock(&mutex_);
    if (!script_.breaks.empty()) {
      chunks_left = script_.breaks.front();
      script_.breaks.pop_front();
    }
    script = script_;
  }
  const int hook_points = static_cast<int>(script.budgets.size());
  int64_t row = 0;
  int next = 0;
  if (!request.resume_token().empty()) {
    const std::vector<std::string> parts = absl::StrSplit(request.resume_token(), ' ');
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &row) || !absl::SimpleAtoi(parts[1], &next)) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "resume_token");
    }
  }
  v1::CaptureResponse response;
  v1::CaptureStarted& started = *response.mutable_started();
  started.set_fingerprint(script.fingerprint);
  started.set_dtype(v1::DTYPE_FLOAT32);
  started.set_resume_token(absl::StrCat(row, " ", next));
  for (int h = 0; h < hook_points; ++h) {
    v1::HookPointGrant& grant = *started.add_hook_points();
    grant.set_hook_point(absl::StrCat("hook", h));
    grant.set_width(kFakeWidth);
    grant.set_max_activations(script.budgets[h]);
  }
  stream->Write(response);

  const int64_t end = *std::max_element(script.budgets.begin(), script.budgets.end());
  for (; row < end; row += script.group_rows, next = 0) {
    for (int h = next; h < hook_points; ++h) {
      const int64_t rows = std::min<int64_t>(script.group_rows, script.budgets[h] - row);
      if (rows <= 0) continue;
      if (chunks_left-- == 0) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the connection broke");
      v1::ActivationChunk& chunk = *response.mutable_chunk();
      chunk.Clear();
      chunk.set_hook_point(absl::StrCat("hook", h));
      chunk.set_first_row(row);
      chunk.set_rows(static_cast<int32_t>(rows));
      chunk.set_width(kFakeWidth);
      chunk.set_dtype(v1::DTYPE_FLOAT32);
      chunk.set_resume_token(absl::StrCat(row, " ", h + 1));
      for (int64_t r = row; r < row + rows; ++r) {
        const std::vector<float> values(kFakeWidth, FakeValue(h, r));
        chunk.mutable_data()->append(reinterpret_cast<const char*>(values.data()), sizeof(float) * kFakeWidth);
        if (!request.provenance()) continue;
        chunk.add_sequence(r / 4);
        chunk.add_position(static_cast<int32_t>(r % 4));
        chunk.add_token_id(static_cast<uint32_t>(100 + r));
      }
      if (!stream->Write(response)) {
        absl::MutexLock lock(&mutex_);
        abandoned_ = true;
        return grpc::Status::CANCELLED;
      }
    }
    if (script.holds) {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&released_));
    }
  }
  if (!script.summary) return grpc::Status::OK;
  v1::CaptureSummary& summary = *response.mutable_summary();
  summary.set_stop_reason(v1::STOP_REASON_BUDGET);
  summary.set_sequences(end);
  stream->Write(response);
  return grpc::Status::OK;
}

grpc::Status CaptureServer::Capture(grpc::ServerContext*, const v1::CaptureRequest* request,
                                    grpc::ServerWriter<v1::CaptureResponse>* writer) {
  return Run(*request, writer);
}

grpc::Status CaptureServer::CaptureStream(
    grpc::ServerContext*, grpc::ServerReaderWriter<v1::CaptureResponse, v1::CaptureStreamRequest>* stream) {
  v1::CaptureStreamRequest first, message;
  if (!stream->Read(&first) || !first.has_request()) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first message is no request");
  }
  while (stream->Read(&message)) {
    absl::MutexLock lock(&mutex_);
    for (const v1::TokenSequence& sequence : message.tokens().sequences()) {
      sequences_.emplace_back(sequence.ids().begin(), sequence.ids().end());
    }
  }
  return Run(first.request(), stream);
}

}  // namespace hookline::client
