// Sends captures of prepared rows as fast as gRPC takes them: what a server costs apart from its model. For measuring
// receivers; every capture asked for gets `max_activations` rows of one hook point.
//
//   stream_server [WIDTH] [ROWS_PER_MESSAGE]    prints its port and serves until its standard input ends
#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "hookline/v1/capture_service.grpc.pb.h"

namespace {

namespace v1 = hookline::v1;

constexpr char kHookPoint[] = "blocks.0.hook_resid_post";
constexpr uint32_t kDataTag = (v1::ActivationChunk::kDataFieldNumber << 3) | 2;
constexpr uint32_t kChunkTag = (v1::CaptureResponse::kChunkFieldNumber << 3) | 2;

struct Rows {
  int32_t width;
  int32_t rows_per_message;
  std::vector<float> values;  // of one message
};

grpc::ByteBuffer Encode(const v1::CaptureResponse& response) {
  grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// A chunk whose values are not copied: `rows` outlives the server.
grpc::ByteBuffer EncodeChunk(const Rows& rows, int64_t first_row, int32_t count) {
  v1::ActivationChunk chunk;
  chunk.set_hook_point(kHookPoint);
  chunk.set_first_row(first_row);
  chunk.set_rows(count);
  chunk.set_width(rows.width);
  chunk.set_dtype(v1::DTYPE_FLOAT32);
  chunk.set_resume_token("row " + std::to_string(first_row + count));
  const std::string fields = chunk.SerializeAsString();
  const uint32_t data_bytes = static_cast<uint32_t>(count) * rows.width * sizeof(float);
  std::string head;
  {
    namespace io = google::protobuf::io;
    io::StringOutputStream stream(&head);
    io::CodedOutputStream out(&stream);
    out.WriteVarint32(kChunkTag);
    out.WriteVarint32(fields.size() + io::CodedOutputStream::VarintSize32(kDataTag) +
                      io::CodedOutputStream::VarintSize32(data_bytes) + data_bytes);
    out.WriteString(fields);
    out.WriteVarint32(kDataTag);
    out.WriteVarint32(data_bytes);
  }
  grpc::Slice slices[] = {grpc::Slice(head), grpc::Slice(rows.values.data(), data_bytes, grpc::Slice::STATIC_SLICE)};
  return grpc::ByteBuffer(slices, 2);
}

class Stream : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  Stream(const Rows& rows, const v1::CaptureRequest& request) : rows_(rows), total_(request.max_activations()) {
    v1::CaptureResponse response;
    v1::CaptureStarted& started = *response.mutable_started();
    started.set_model("bench");
    started.set_dtype(v1::DTYPE_FLOAT32);
    v1::HookPointGrant& grant = *started.add_hook_points();
    grant.set_hook_point(kHookPoint);
    grant.set_width(rows.width);
    grant.set_max_activations(total_);
    buffer_ = Encode(response);
    StartWrite(&buffer_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (sent_ < total_) {
      const int32_t count = static_cast<int32_t>(std::min<int64_t>(rows_.rows_per_message, total_ - sent_));
      buffer_ = EncodeChunk(rows_, sent_, count);
      sent_ += count;
      return StartWrite(&buffer_);
    }
    if (summarized_) return Finish(grpc::Status::OK);
    summarized_ = true;
    v1::CaptureResponse response;
    response.mutable_summary()->set_stop_reason(v1::STOP_REASON_BUDGET);
    v1::HookPointSummary& summary = *response.mutable_summary()->add_hook_points();
    summary.set_hook_point(kHookPoint);
    summary.set_rows(sent_);
    buffer_ = Encode(response);
    StartWrite(&buffer_);
  }

  void OnDone() override { delete this; }

 private:
  const Rows& rows_;
  const int64_t total_;
  int64_t sent_ = 0;
  bool summarized_ = false;
  grpc::ByteBuffer buffer_;
};

class Service : public v1::CaptureService::WithRawCallbackMethod_Capture<v1::CaptureService::Service> {
 public:
  explicit Service(const Rows& rows) : rows_(rows) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Capture(grpc::CallbackServerContext*,
                                                      const grpc::ByteBuffer* message) override {
    v1::CaptureRequest request;
    std::vector<grpc::Slice> slices;
    std::string bytes;
    if (message->Dump(&slices).ok()) {
      for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    request.ParseFromString(bytes);
    return new Stream(rows_, request);
  }

 private:
  const Rows& rows_;
};

}  // namespace

int main(int argc, char** argv) {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  Rows rows;
  rows.width = argc > 1 ? std::atoi(argv[1]) : 768;
  rows.rows_per_message = argc > 2 ? std::atoi(argv[2]) : 340;
  if (rows.width < 1 || rows.rows_per_message < 1) {
    std::cerr << "usage: stream_server [WIDTH] [ROWS_PER_MESSAGE]\n";
    return 2;
  }
  rows.values.resize(static_cast<size_t>(rows.width) * rows.rows_per_message);
  for (size_t i = 0; i < rows.values.size(); ++i) rows.values[i] = static_cast<float>(i % 1000);

  Service service(rows);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::cout << port << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
  }
  server->Shutdown();
  return 0;
}
