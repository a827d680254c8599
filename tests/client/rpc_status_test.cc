#include "client/cpp/rpc_status.h"

#include <random>
#include <string>

#include "gmock/gmock.h"
#include "google/protobuf/stubs/logging.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

std::string Field(int number, const std::string& value) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(value.size()) + value;
}

std::string Details(const std::string& type, const std::string& value) {
  return std::string("\x08\x03", 2) + Field(2, "no") +
         Field(3, Field(1, "type.googleapis.com/" + type) + Field(2, value));
}

TEST(FromGrpc, KeepsCodeMessageAndField) {
  const std::string details = Details("google.rpc.BadRequest", Field(1, Field(1, "hook_points[2]") + Field(2, "no")));
  absl::Status status = FromGrpc(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "hook_points[2]: unknown", details));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "hook_points[2]: unknown");
  EXPECT_EQ(FieldOf(status), "hook_points[2]");
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(FromGrpc, EscapesWhatAServerSays) {
  const std::string details = Details("google.rpc.BadRequest", Field(1, Field(1, "a\x1b[31m") + Field(2, "no")));
  absl::Status status = FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "no \x1b[31m\nforged \xff", details));
  EXPECT_EQ(status.message(), "no \\x1b[31m\\nforged \\xff");
  EXPECT_EQ(FieldOf(status), "a\\x1b[31m");
}

TEST(BadRequestField, TakesTheFirstViolation) {
  EXPECT_EQ(BadRequestField(Details("google.rpc.BadRequest", Field(1, Field(1, "x")) + Field(1, Field(1, "y")))), "x");
}

TEST(BadRequestField, IsEmptyWithoutABadRequest) {
  EXPECT_EQ(BadRequestField(""), "");
  EXPECT_EQ(BadRequestField("no protobuf at all"), "");
  EXPECT_EQ(BadRequestField(Details("google.rpc.ErrorInfo", Field(1, Field(1, "x")))), "");
}

TEST(BadRequestField, SurvivesAnyBytes) {
  const std::string original = Details("google.rpc.BadRequest", Field(1, Field(1, "hook_points")));
  google::protobuf::LogSilencer silencer;  // protobuf logs every string that is not UTF-8
  for (size_t size = 0; size < original.size(); ++size) BadRequestField(original.substr(0, size));
  std::mt19937 random(3);
  for (int round = 0; round < 20'000; ++round) {
    std::string mutated = original;
    for (int i = 0; i < 3; ++i) mutated[random() % mutated.size()] = static_cast<char>(random());
    BadRequestField(mutated);
  }
}

}  // namespace
}  // namespace hookline::client
