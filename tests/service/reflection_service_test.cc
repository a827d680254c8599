// Tests questions to the reflection service that grpcurl does not ask. (server_test.cc tests those that it asks.)
#include "server/service/reflection_service.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/descriptor.pb.h"
#include "server/service/plain_call.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace reflection = grpc::reflection::v1alpha;

reflection::ServerReflectionResponse Answer(const reflection::ServerReflectionRequest& request) {
  auto response = AnswerReflection(Serialized(request), {"a.Service", "b.Service"});
  EXPECT_TRUE(response.ok()) << response.status();
  return response.value_or(reflection::ServerReflectionResponse());
}

TEST(Reflection, RepeatsTheQuestion) {
  reflection::ServerReflectionRequest request;
  request.set_host("host");
  request.set_list_services("*");
  const auto response = Answer(request);
  EXPECT_EQ(response.valid_host(), "host");
  EXPECT_EQ(response.original_request().SerializeAsString(), request.SerializeAsString());
  ASSERT_EQ(response.list_services_response().service_size(), 2);
  EXPECT_EQ(response.list_services_response().service(1).name(), "b.Service");
}

TEST(Reflection, GivesAFileWithAllThatItImportsEachOnce) {
  reflection::ServerReflectionRequest request;
  request.set_file_by_filename("hookline/v1/evaluation_service.proto");
  const auto response = Answer(request);
  std::vector<std::string> names;
  std::vector<std::string> imports;
  for (const std::string& bytes : response.file_descriptor_response().file_descriptor_proto()) {
    google::protobuf::FileDescriptorProto file;
    ASSERT_TRUE(file.ParseFromString(bytes));
    names.push_back(file.name());
    imports.insert(imports.end(), file.dependency().begin(), file.dependency().end());
  }
  ASSERT_FALSE(imports.empty());
  EXPECT_EQ(names[0], "hookline/v1/evaluation_service.proto");
  for (const std::string& import : imports) EXPECT_EQ(std::count(names.begin(), names.end(), import), 1) << import;
}

TEST(Reflection, SaysWhatItDoesNotHave) {
  reflection::ServerReflectionRequest request;
  request.set_file_by_filename("none.proto");
  EXPECT_EQ(Answer(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(Answer(request).error_response().error_message(), HasSubstr("none.proto"));
  request.set_file_containing_symbol("none.Service");
  EXPECT_EQ(Answer(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_all_extension_numbers_of_type("none.Message");
  EXPECT_EQ(Answer(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  request.mutable_file_containing_extension()->set_containing_type("google.protobuf.MethodOptions");
  request.mutable_file_containing_extension()->set_extension_number(77);
  EXPECT_EQ(Answer(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  request.Clear();
  EXPECT_EQ(Answer(request).error_response().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(Reflection, NamesTheExtensionsOfAMessage) {
  reflection::ServerReflectionRequest request;
  request.set_all_extension_numbers_of_type("google.protobuf.FileOptions");
  const auto response = Answer(request);
  EXPECT_EQ(response.all_extension_numbers_response().base_type_name(), "google.protobuf.FileOptions");
  EXPECT_THAT(response.all_extension_numbers_response().extension_number(), ElementsAre());
}

TEST(Reflection, RefusesLargeQuestionsBeforeItParsesThem) {
  const grpc::Slice large(std::string(kMaxReflectionRequestBytes + 1, '\xff'));
  EXPECT_EQ(AnswerReflection(grpc::ByteBuffer(&large, 1), {}).status().code(), absl::StatusCode::kResourceExhausted);
  const grpc::Slice wrong("\xff", 1);
  EXPECT_EQ(AnswerReflection(grpc::ByteBuffer(&wrong, 1), {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hookline
