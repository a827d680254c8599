#include "server/base/status.h"

#include "gtest/gtest.h"

namespace hookline {
namespace {

TEST(StatusTest, AnInvalidFieldIsNamedInTheMessageAndBesideIt) {
  absl::Status status = InvalidField("tokens.sequences[3].ids[17]", "300 is not below the vocabulary size 257");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "tokens.sequences[3].ids[17]: 300 is not below the vocabulary size 257");
  EXPECT_EQ(FieldOf(status), "tokens.sequences[3].ids[17]");
}

TEST(StatusTest, OtherStatusesNameNoField) { EXPECT_EQ(FieldOf(absl::NotFoundError("no")), ""); }

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  ASSIGN_OR_RETURN(int half, Half(value));
  return Half(half);
}

TEST(StatusTest, AssignOrReturnPassesTheErrorOn) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(7).status().message(), "odd");
  EXPECT_EQ(Quarter(6).status().message(), "odd");
}

}  // namespace
}  // namespace hookline
