#include "server/service/status_mapping.h"

#include <string>

#include "gmock/gmock.h"
#include "server/base/status.h"
#include "server/service/library_logs.h"
#include "spdlog/details/log_msg.h"

namespace hookline {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

TEST(StatusMapping, KeepsCodeAndMessage) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    grpc::Status status = ToGrpc(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), "why");
    EXPECT_EQ(status.error_details(), "");
  }
}

TEST(StatusMapping, CarriesTheFieldInDetails) {
  grpc::Status status = ToGrpc(InvalidField("hook_points[2]", "unknown"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "hook_points[2]: unknown");
  // The bytes of google.rpc.Status{3, message, [Any{BadRequest{[{field, description}]}}]}.
  const std::string violation = "\x0a\x0ehook_points[2]\x12\x17hook_points[2]: unknown";
  const std::string bad_request = std::string("\x0a") + static_cast<char>(violation.size()) + violation;
  const std::string any = "\x0a)type.googleapis.com/google.rpc.BadRequest\x12" +
                          std::string(1, static_cast<char>(bad_request.size())) + bad_request;
  EXPECT_EQ(status.error_details(),
            "\x08\x03\x12\x17hook_points[2]: unknown\x1a" + std::string(1, static_cast<char>(any.size())) + any);
}

TEST(StatusMapping, NamesInTheMessageAndTheFieldAreEscaped) {
  grpc::Status status = ToGrpc(InvalidField("budgets[a\x1b[31m\n\xff]", "no \x9b hook point \xe2\x80\xae"));
  EXPECT_EQ(status.error_message(), "budgets[a\\x1b[31m\\n\\xff]: no \\x9b hook point \\xe2\\x80\\xae");
  EXPECT_THAT(status.error_details(), HasSubstr("budgets[a\\x1b[31m\\n\\xff]\x12"));
}

TEST(LogFormatter, AMessageIsOneLineOfWhatCanBeShown) {
  spdlog::memory_buf_t out;
  LogFormatter()->format(spdlog::details::log_msg("hookline", spdlog::level::warn, "a\x1b[31m\nforged \xff"), out);
  EXPECT_THAT(std::string(out.data(), out.size()), EndsWith("a\\x1b[31m\\nforged \\xff\n"));
}

TEST(StatusMapping, FitsHeadersThatEveryClientTakes) {
  std::string long_text;
  for (int i = 0; i < 5000; ++i) long_text += "\xc3\xa9";  // é: two bytes, six once escaped
  grpc::Status status = ToGrpc(InvalidField(long_text, long_text));
  EXPECT_LE(status.error_message().size(), kMaxStatusMessageBytes);
  EXPECT_THAT(status.error_message(), EndsWith("\xc3\xa9..."));
  EXPECT_LE(status.error_message().size() * 3 + status.error_details().size() * 4 / 3, 7 << 10);
}

}  // namespace
}  // namespace hookline
