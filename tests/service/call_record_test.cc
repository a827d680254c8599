// Every call that ends is reported: by one line of the log, and by the metrics.
#include "server/service/call_record.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "prometheus/text_serializer.h"
#include "server/base/quota_refusal.h"
#include "server/service/event_log.h"
#include "server/service/library_logs.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

class LinesSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // Waits for a line that holds `text`, and returns the first one.
  std::string WaitFor(const std::string& text) {
    std::string found;
    absl::MutexLock lock(&lines_mutex_);
    const auto is_there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lines_mutex_) {
      const auto line =
          std::find_if(lines_.begin(), lines_.end(), [&](const std::string& l) { return l.find(text) != l.npos; });
      if (line != lines_.end()) found = *line;
      return line != lines_.end();
    };
    lines_mutex_.Await(absl::Condition(&is_there));
    return found;
  }

  int Count(const std::string& text) {
    absl::MutexLock lock(&lines_mutex_);
    return static_cast<int>(
        std::count_if(lines_.begin(), lines_.end(), [&](const std::string& l) { return l.find(text) != l.npos; }));
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    absl::MutexLock lock(&lines_mutex_);
    lines_.emplace_back(line.data(), line.size());
  }
  void flush_() override {}

  absl::Mutex lines_mutex_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(lines_mutex_);
};

// Catches the log lines of a test.
class CallRecordTest : public ServiceFixture {
 protected:
  CallRecordTest() { UseFormat(LogFormat::kText); }
  ~CallRecordTest() override {
    server_.reset();
    spdlog::set_default_logger(before_);
    SetEventFormat(LogFormat::kText);
  }

  void UseFormat(LogFormat format) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("hookline", lines_));
    spdlog::set_formatter(format == LogFormat::kJson ? JsonLogFormatter() : LogFormatter());
    SetEventFormat(format);
  }

  void ServeCounted() {
    ServerOptions options;
    options.call_metrics = &metrics_;
    Serve({}, options);
  }

  grpc::Status Capture(int64_t rows, const std::vector<std::string>& hook_points = {"a"}) {
    grpc::ClientContext context;
    auto reader = stub()->Capture(&context, Request(rows, hook_points));
    v1::CaptureResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }

  std::string Page() const { return prometheus::TextSerializer().Serialize(metrics_.Collect()); }

  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<LinesSink> lines_ = std::make_shared<LinesSink>();
  CallMetrics metrics_;
};

TEST_F(CallRecordTest, ACaptureIsOneLineWithItsRowsBytesAndTimes) {
  ServeCounted();
  EXPECT_TRUE(Capture(1000, {"a", "b"}).ok());
  const std::string line = lines_->WaitFor("Capture code=OK");
  EXPECT_THAT(line, HasSubstr(" info call client=127.0.0.1 peer=127.0.0.1 method=/hookline.v1.CaptureService/Capture "
                              "code=OK rows=2000 bytes="));
  EXPECT_THAT(line,
              ContainsRegex(" bytes=6[0-9]{6} seconds=[0-9.e-]+ first_row_seconds=[0-9.e-]+ wire_seconds=[0-9.e-]+"
                            " queue_seconds=[0-9.e-]+ forward_seconds=[0-9.e-]+ copy_seconds=[0-9.e-]+\n$"));
  EXPECT_EQ(lines_->Count(" call "), 1);
}

TEST_F(CallRecordTest, EveryKindOfCallIsTold) {
  ServeCounted();
  grpc::ClientContext models_context;
  v1::ListModelsResponse models;
  EXPECT_TRUE(v1::ModelService::NewStub(channel_)->ListModels(&models_context, {}, &models).ok());
  EXPECT_THAT(lines_->WaitFor("ListModels"), ContainsRegex("code=OK rows=0 bytes=[1-9]"));
  grpc::ClientContext model_context;
  v1::GetModelRequest get;
  get.set_name("none");
  v1::Model model;
  EXPECT_FALSE(v1::ModelService::NewStub(channel_)->GetModel(&model_context, get, &model).ok());
  EXPECT_THAT(lines_->WaitFor("GetModel"), HasSubstr("code=NOT_FOUND rows=0 bytes=0"));
  grpc::ClientContext estimate_context;
  v1::EstimateCaptureRequest estimate;
  v1::EstimateCaptureResponse estimated;
  EXPECT_FALSE(stub()->EstimateCapture(&estimate_context, estimate, &estimated).ok());
  EXPECT_THAT(lines_->WaitFor("EstimateCapture"), HasSubstr("code=INVALID_ARGUMENT"));
  EXPECT_FALSE(Capture(1, {"unknown"}).ok());
  EXPECT_THAT(lines_->WaitFor("/Capture "), HasSubstr("code=INVALID_ARGUMENT rows=0 bytes=0"));
  {
    grpc::ClientContext context;
    auto stream = stub()->CaptureStream(&context);
    stream->Write(FirstMessage());
    v1::CaptureResponse response;
    EXPECT_TRUE(stream->Read(&response));
    context.TryCancel();
    stream->Finish();
  }
  EXPECT_THAT(lines_->WaitFor("CaptureStream"), HasSubstr("code=CANCELLED"));
}

TEST_F(CallRecordTest, CallsAreCountedByMethodAndCode) {
  ServeCounted();
  EXPECT_TRUE(Capture(1000).ok());
  EXPECT_FALSE(Capture(1, {"unknown"}).ok());
  lines_->WaitFor("code=OK");
  lines_->WaitFor("code=INVALID_ARGUMENT");
  const std::string page = Page();
  const std::string capture = "{grpc_service=\"hookline.v1.CaptureService\",grpc_method=\"Capture\"";
  EXPECT_THAT(page, HasSubstr("hookline_grpc_server_started_total" + capture + "} 2\n"));
  EXPECT_THAT(page, HasSubstr("hookline_grpc_server_handled_total" + capture + ",grpc_code=\"OK\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("hookline_grpc_server_handled_total" + capture + ",grpc_code=\"INVALID_ARGUMENT\"} 1\n"));
  // The series exists from the first moment, so that an alert does not miss its first increase.
  EXPECT_THAT(page, HasSubstr("hookline_grpc_server_handled_total" + capture + ",grpc_code=\"INTERNAL\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("hookline_grpc_server_handling_seconds_count" + capture + "} 2\n"));
  EXPECT_THAT(page, HasSubstr("hookline_first_row_seconds_count" + capture + "} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("hookline_wire_seconds_count" + capture + "} 0\n")));
}

TEST_F(CallRecordTest, QuotaRefusalsAreCountedByQuotaAndClient) {
  ClientIdentity alice("alice");
  alice.is_authenticated = true;
  for (const ClientIdentity& client : {alice, ClientIdentity("10.0.0.1"), ClientIdentity("10.0.0.2")}) {
    CallRecord record(&metrics_, "/hookline.v1.CaptureService/Capture", "10.0.0.9");
    record.SetClient(client);
    record.End(QuotaRefusal("captures", "too many"));
  }
  const std::string page = Page();
  EXPECT_THAT(
      page, HasSubstr("hookline_quota_refusals_total{quota=\"captures\",client=\"alice\",authenticated=\"true\"} 1\n"));
  EXPECT_THAT(
      page,
      HasSubstr("hookline_quota_refusals_total{quota=\"captures\",client=\"unnamed\",authenticated=\"false\"} 2\n"));
}

TEST_F(CallRecordTest, ANameCannotForgeAValueOrALine) {
  CallRecord record(nullptr, "/hookline.v1.CaptureService/Capture", "unix");
  record.SetClient(ClientIdentity("a code=OK \"\\\n\x1b[31m\xff"));
  record.End(absl::InternalError("why"));
  EXPECT_THAT(lines_->WaitFor("call"),
              HasSubstr("client=\"a code=OK \\\"\\\\\\\\n\\\\x1b[31m\\\\xff\" peer=unix method="));
  UseFormat(LogFormat::kJson);
  record.End(absl::OkStatus());
  const std::string line = lines_->WaitFor("{");
  EXPECT_THAT(
      line,
      HasSubstr("\"message\":\"call\",\"client\":\"a code=OK \\\"\\\\\\\\n\\\\x1b[31m\\\\xff\",\"peer\":\"unix\""));
  EXPECT_THAT(line, ContainsRegex(",\"code\":\"OK\",\"rows\":0,\"bytes\":0,\"seconds\":[0-9.e-]+\\}\n$"));
  spdlog::warn("a \"quoted\"\nline");
  EXPECT_THAT(lines_->WaitFor("quoted"),
              HasSubstr(",\"level\":\"warning\",\"message\":\"a \\\"quoted\\\"\\\\nline\"}\n"));
}

TEST_F(CallRecordTest, AClientThatIsNotRecognisedHasNoName) {
  CallRecord record(nullptr, "/hookline.v1.CaptureService/Capture", "10.0.0.7");
  record.End(absl::UnauthenticatedError("no token"));
  EXPECT_THAT(lines_->WaitFor("call"), HasSubstr(" info call peer=10.0.0.7 method=/hookline.v1.CaptureService/Capture "
                                                 "code=UNAUTHENTICATED rows=0 bytes=0 seconds="));
}

}  // namespace
}  // namespace hookline
