#include "server/service/server.h"

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/descriptor_database.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/util/json_util.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "hookline/v1/dataset_service.grpc.pb.h"
#include "hookline/v1/model_service.grpc.pb.h"
#include "server/base/status.h"
#include "tests/service/service_fixture.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

using google::protobuf::Message;

// Calls a method by its path with all messages as bytes. On the wire, any kind of method looks like a bidirectional
// stream on which each request is sent and half-closed.
class ByteCall {
 public:
  ByteCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method)
      : stream_(grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel.get(), grpc::internal::RpcMethod(method.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING),
            &context_)) {}

  grpc::ClientContext& context() { return context_; }

  void Write(const std::string& request) {
    grpc::Slice slice(request);
    stream_->Write(grpc::ByteBuffer(&slice, 1));
  }

  void WritesDone() { stream_->WritesDone(); }

  // Returns false at the end.
  bool Read(std::string* response) {
    grpc::ByteBuffer buffer;
    if (!stream_->Read(&buffer)) return false;
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(buffer.Dump(&slices).ok());
    response->clear();
    for (const grpc::Slice& slice : slices) {
      response->append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return true;
  }

  grpc::Status Finish() { return stream_->Finish(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream_;
};

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

HealthCheckResponse::ServingStatus Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}

using ServerTest = ServiceFixture;

TEST_F(ServerTest, IsHealthyFromItsStartAndNamesEachService) {
  Serve();
  for (const char* service :
       {"", "hookline.v1.CaptureService", "hookline.v1.ModelService", "hookline.v1.DatasetService"}) {
    EXPECT_EQ(Health(channel_, service), HealthCheckResponse::SERVING) << service;
  }
}

TEST_F(ServerTest, TellsWatchersOfItsHealthThatItDrains) {
  Serve();
  grpc::ClientContext context;
  auto watch = grpc::health::v1::Health::NewStub(channel_)->Watch(&context, {});
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  std::thread drain([this] { server_->Drain(absl::Now()); });
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  drain.join();
}

TEST_F(ServerTest, ListsItsModelsAndDescribesEach) {
  Serve();
  auto stub = v1::ModelService::NewStub(channel_);
  {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    ASSERT_TRUE(stub->ListModels(&context, {}, &response).ok());
    ASSERT_EQ(response.models_size(), 1);
    EXPECT_EQ(response.models(0).name(), "fake");
    EXPECT_EQ(response.models(0).hook_points_size(), 0);
  }
  {
    grpc::ClientContext context;
    v1::Model model;
    ASSERT_TRUE(stub->GetModel(&context, {}, &model).ok());
    EXPECT_EQ(model.architecture(), "synthetic");
    EXPECT_EQ(model.variant(), "rows");
    EXPECT_EQ(model.layers(), 2);
    EXPECT_EQ(model.width(), 768);
    EXPECT_EQ(model.heads(), 4);
    EXPECT_EQ(model.key_value_heads(), 2);
    EXPECT_EQ(model.context_length(), 128);
    EXPECT_EQ(model.vocabulary_size(), 1000);
    EXPECT_EQ(model.dtype(), v1::DTYPE_FLOAT32);
    EXPECT_EQ(model.device(), "cpu");
    EXPECT_EQ(model.fingerprint(), "000102030405060708090a0b0c0d0e0f");
    EXPECT_EQ(model.parameters(), 12345);
    ASSERT_EQ(model.hook_points_size(), 2);
    EXPECT_EQ(model.hook_points(0).name(), "a");
    EXPECT_EQ(model.hook_points(0).layer(), -1);
    EXPECT_EQ(model.hook_points(1).width(), 768);
    EXPECT_EQ(model.hook_points(1).description(), "The second.");
  }
  {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_name("gpt5");
    v1::Model model;
    grpc::Status status = stub->GetModel(&context, request, &model);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr("gpt5"), HasSubstr("fake")));
  }
}

TEST_F(ServerTest, ListsItsDatasetsAndDescribesEach) {
  const std::string path = ::testing::TempDir() + "/service_datasets.bin";
  std::ofstream(path, std::ios::binary) << std::string("\x01\x00\x05\x00\x03\x00", 6);
  FakeEngineOptions options;
  auto dataset = Dataset::Open("tiny", path + ":uint16");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  options.datasets.push_back(*std::move(dataset));
  std::remove(path.c_str());
  Serve(std::move(options));
  auto stub = v1::DatasetService::NewStub(channel_);
  {
    grpc::ClientContext context;
    v1::ListDatasetsResponse response;
    ASSERT_TRUE(stub->ListDatasets(&context, {}, &response).ok());
    ASSERT_EQ(response.datasets_size(), 1);
    EXPECT_EQ(response.datasets(0).name(), "tiny");
    EXPECT_EQ(response.datasets(0).tokens(), 3);
    EXPECT_EQ(response.datasets(0).row_length(), 0);
    EXPECT_EQ(response.datasets(0).token_dtype(), "uint16");
    EXPECT_EQ(response.datasets(0).largest_token_id(), 5u);
    EXPECT_EQ(response.datasets(0).fingerprint().size(), 16u);
  }
  {
    grpc::ClientContext context;
    v1::GetDatasetRequest request;
    request.set_name("tiny");
    v1::Dataset answer;
    ASSERT_TRUE(stub->GetDataset(&context, request, &answer).ok());
    EXPECT_EQ(answer.tokens(), 3);
  }
  {
    grpc::ClientContext context;
    v1::GetDatasetRequest request;
    request.set_name("pile");
    v1::Dataset answer;
    EXPECT_EQ(stub->GetDataset(&context, request, &answer).error_code(), grpc::StatusCode::NOT_FOUND);
  }
}

TEST_F(ServerTest, RefusesAnAddressThatIsTakenNamingIt) {
  Serve();
  ServerOptions options;
  options.listen = {address_};
  absl::Status status = Server::Start(options, engine_.get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(address_));
}

TEST_F(ServerTest, RefusesOptionsOutOfRange) {
  FakeEngine engine;
  ServerOptions options;
  options.listen = {};
  EXPECT_EQ(FieldOf(Server::Start(options, &engine).status()), "listen");
  options = {};
  options.max_request_bytes = 100;
  EXPECT_EQ(FieldOf(Server::Start(options, &engine).status()), "max_request_bytes");
  options = {};
  options.max_calls_per_connection = 0;
  EXPECT_EQ(FieldOf(Server::Start(options, &engine).status()), "max_calls_per_connection");
  options = {};
  options.keepalive = absl::Milliseconds(1);
  EXPECT_EQ(FieldOf(Server::Start(options, &engine).status()), "keepalive");
}

TEST_F(ServerTest, ListensOnSeveralAddressesAndOnUnixSockets) {
  FakeEngine engine;
  ServerOptions options;
  const std::string path = ::testing::TempDir() + "/service_test.sock";
  options.listen = {"127.0.0.1:0", "unix:" + path};
  auto server = Server::Start(options, &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  for (const std::string& address : {absl::StrCat("127.0.0.1:", (*server)->ports()[0]), "unix:" + path}) {
    EXPECT_EQ(Health(NewChannel(address), ""), HealthCheckResponse::SERVING);
  }
  grpc::ClientContext context;
  auto stub = v1::CaptureService::NewStub(NewChannel("unix:" + path));
  auto stream = stub->Capture(&context, Request(1));
  v1::CaptureResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(engine.last_address(), "unix");
}

// Learns all about the service from the server, like grpcurl, and nothing from compiled protos. (The messages of the
// reflection service itself come from gRPC's library.)
class ReflectionClient : public google::protobuf::DescriptorDatabase {
 public:
  explicit ReflectionClient(const std::shared_ptr<grpc::Channel>& channel)
      : call_(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") {}

  ~ReflectionClient() override {
    call_.WritesDone();
    EXPECT_TRUE(call_.Finish().ok());
  }

  std::vector<std::string> Services() {
    auto response = Ask("list_services", "*");
    std::vector<std::string> names;
    const auto& list = Sub(*response, "list_services_response");
    const auto* services = list.GetDescriptor()->FindFieldByName("service");
    for (int i = 0; i < list.GetReflection()->FieldSize(list, services); ++i) {
      const auto& service = list.GetReflection()->GetRepeatedMessage(list, services, i);
      names.push_back(service.GetReflection()->GetString(service, service.GetDescriptor()->FindFieldByName("name")));
    }
    return names;
  }

  bool FindFileByName(const std::string& name, google::protobuf::FileDescriptorProto* file) override {
    if (!fetched_.FindFileByName(name, file)) Fetch("file_by_filename", name);
    return fetched_.FindFileByName(name, file);
  }
  bool FindFileContainingSymbol(const std::string& name, google::protobuf::FileDescriptorProto* file) override {
    if (!fetched_.FindFileContainingSymbol(name, file)) Fetch("file_containing_symbol", name);
    return fetched_.FindFileContainingSymbol(name, file);
  }
  bool FindFileContainingExtension(const std::string&, int, google::protobuf::FileDescriptorProto*) override {
    return false;
  }

 private:
  static std::unique_ptr<Message> New(const std::string& type) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName("grpc.reflection.v1alpha." + type);
    return std::unique_ptr<Message>(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)->New());
  }

  static const Message& Sub(const Message& message, const std::string& field) {
    return message.GetReflection()->GetMessage(message, message.GetDescriptor()->FindFieldByName(field));
  }

  std::unique_ptr<Message> Ask(const std::string& field, const std::string& value) {
    auto request = New("ServerReflectionRequest");
    request->GetReflection()->SetString(request.get(), request->GetDescriptor()->FindFieldByName(field), value);
    call_.Write(request->SerializeAsString());
    auto response = New("ServerReflectionResponse");
    std::string bytes;
    EXPECT_TRUE(call_.Read(&bytes) && response->ParseFromString(bytes));
    return response;
  }

  // Asks for a file. The answer holds the file and its imports.
  void Fetch(const std::string& field, const std::string& name) {
    auto response = Ask(field, name);
    const auto& files = Sub(*response, "file_descriptor_response");
    const auto* protos = files.GetDescriptor()->FindFieldByName("file_descriptor_proto");
    for (int i = 0; i < files.GetReflection()->FieldSize(files, protos); ++i) {
      google::protobuf::FileDescriptorProto file;
      EXPECT_TRUE(file.ParseFromString(files.GetReflection()->GetRepeatedString(files, protos, i)));
      google::protobuf::FileDescriptorProto known;
      if (!fetched_.FindFileByName(file.name(), &known)) fetched_.Add(file);
    }
  }

  google::protobuf::SimpleDescriptorDatabase fetched_;
  ByteCall call_;
};

TEST_F(ServerTest, ServesACaptureToAClientThatKnowsItByReflectionOnly) {
  Serve();
  ReflectionClient reflection(channel_);
  EXPECT_THAT(reflection.Services(),
              IsSupersetOf({"hookline.v1.CaptureService", "hookline.v1.ModelService", "hookline.v1.DatasetService",
                            "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}));

  google::protobuf::DescriptorPool pool(&reflection);
  EXPECT_NE(pool.FindServiceByName("grpc.health.v1.Health"), nullptr);
  EXPECT_NE(pool.FindMessageTypeByName("google.rpc.BadRequest"), nullptr);
  const auto* service = pool.FindServiceByName("hookline.v1.CaptureService");
  ASSERT_NE(service, nullptr);
  const auto* method = service->FindMethodByName("Capture");
  ASSERT_NE(method, nullptr);
  EXPECT_TRUE(method->server_streaming());
  google::protobuf::DynamicMessageFactory factory(&pool);
  std::unique_ptr<Message> request(factory.GetPrototype(method->input_type())->New());
  ASSERT_TRUE(
      google::protobuf::util::JsonStringToMessage(
          R"({"hook_points":["*"],"max_activations":2,"tokens":{"sequences":[{"ids":[256,72,105]}]}})", request.get())
          .ok());

  ByteCall call(channel_, "/hookline.v1.CaptureService/Capture");
  call.Write(request->SerializeAsString());
  call.WritesDone();
  std::vector<std::string> messages;
  std::string bytes;
  while (call.Read(&bytes)) {
    std::unique_ptr<Message> response(factory.GetPrototype(method->output_type())->New());
    ASSERT_TRUE(response->ParseFromString(bytes));
    std::string json;
    ASSERT_TRUE(google::protobuf::util::MessageToJsonString(*response, &json).ok());
    messages.push_back(json);
  }
  EXPECT_TRUE(call.Finish().ok());
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_THAT(messages[0], AllOf(HasSubstr("started"), HasSubstr(R"("hookPoint":"b")")));
  EXPECT_THAT(messages[1], AllOf(HasSubstr(R"("hookPoint":"a")"), HasSubstr(R"("rows":2)")));
  EXPECT_THAT(messages[2], HasSubstr(R"("hookPoint":"b")"));
  EXPECT_THAT(messages[3], HasSubstr(R"("stopReason":"STOP_REASON_BUDGET")"));
}

}  // namespace
}  // namespace hookline
