// The size of a request without tokens is checked before the request is parsed, because it can be many times as
// large afterwards.
#include "server/service/plain_call.h"

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "google/protobuf/descriptor.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/tokenizer_service.pb.h"
#include "server/base/file_system.h"
#include "server/recorder/recorder.h"
#include "server/recording/catalog.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

// Returns empty strings in a field that no message has.
std::string UnknownFields(size_t bytes) {
  std::string message;
  while (message.size() < bytes) message.append("\xc2\x3e\x00", 3);
  return message;
}

grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status;
}

TEST(PlainCall, OfEveryMethodWithoutTokensTakesASmallRequestOnly) {
  // These have their own limits, on tokens and on everything else (request_parser_test.cc, score_conversion.h).
  const std::set<std::string> with_tokens = {"Capture", "CaptureStream", "EstimateCapture",
                                             "Persist", "Score",         "Substitute"};
  FakeEngine engine(FakeEngineOptions{});
  std::string path = ::testing::TempDir() + "/plain_call_XXXXXX";
  ASSERT_NE(mkdtemp(path.data()), nullptr);
  auto directory = OpenDirectory(path);
  ASSERT_TRUE(directory.ok()) << directory.status();
  auto catalog = Catalog::Open(*std::move(directory), {});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  Recorder recorder(&engine, catalog->get());
  ServerOptions options;
  options.listen = {"127.0.0.1:0"};
  auto server = Server::Start(options, &engine, &recorder);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel =
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", (*server)->ports()[0]), grpc::InsecureChannelCredentials());
  const std::string large = UnknownFields(kMaxPlainRequestBytes + 1);
  int methods = 0;
  for (const char* name : {"CaptureService", "ModelService", "DatasetService", "TokenizerService", "DictionaryService",
                           "EvaluationService", "RecordingService"}) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(absl::StrCat("hookline.v1.", name));
    ASSERT_NE(service, nullptr) << name;
    for (int i = 0; i < service->method_count(); ++i) {
      const std::string& method = service->method(i)->name();
      if (with_tokens.count(method) != 0) continue;
      const grpc::Status status = Call(channel, absl::StrCat("/", service->full_name(), "/", method), large);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << method << ": " << status.error_message();
      EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat(kMaxPlainRequestBytes, " of a ")));
      ++methods;
    }
  }
  EXPECT_GE(methods, 16);
  std::filesystem::remove_all(path);
}

TEST(PlainCall, ARequestThatCannotBeParsedIsRefused) {
  const grpc::Slice slice("\xff", 1);
  EXPECT_THAT(ParsePlain<v1::TokenizeRequest>(grpc::ByteBuffer(&slice, 1)).status().message(),
              HasSubstr("is not a TokenizeRequest message"));
}

}  // namespace
}  // namespace hookline
