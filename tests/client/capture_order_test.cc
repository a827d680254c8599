#include <string>
#include <utility>
#include <vector>

#include "client/cpp/capture_call.h"
#include "gmock/gmock.h"

namespace hookline::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

v1::CaptureStarted Started() {
  v1::CaptureStarted started;
  started.set_dtype(v1::DTYPE_BFLOAT16);
  for (const char* name : {"a", "b"}) {
    v1::HookPointGrant& grant = *started.add_hook_points();
    grant.set_hook_point(name);
    grant.set_width(4);
    grant.set_max_activations(10);
  }
  return started;
}

v1::ActivationChunk Header(const std::string& hook_point, int64_t first_row, int rows) {
  v1::ActivationChunk header;
  header.set_hook_point(hook_point);
  header.set_first_row(first_row);
  header.set_rows(rows);
  header.set_width(4);
  header.set_dtype(v1::DTYPE_BFLOAT16);
  return header;
}

CaptureEvent WithData(v1::ActivationChunk header, int64_t data_bytes) {
  std::vector<grpc::Slice> slices;
  slices.emplace_back(std::string(static_cast<size_t>(data_bytes), 'x'));
  std::vector<absl::Span<const uint8_t>> pieces = {{slices[0].begin(), slices[0].size()}};
  return CaptureEvent(std::in_place_type<Chunk>, std::move(header), std::move(slices), std::move(pieces));
}

CaptureEvent ChunkOf(const std::string& hook_point, int64_t first_row, int rows) {
  return WithData(Header(hook_point, first_row, rows), int64_t{rows} * 4 * 2);
}

class CaptureOrderTest : public ::testing::Test {
 protected:
  void Start() { ASSERT_TRUE(Check(Started()).ok()); }
  absl::Status Check(CaptureEvent event) { return order_.Check(event); }
  void ExpectRefused(CaptureEvent event, const std::string& part) {
    absl::Status status = Check(std::move(event));
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }

  CaptureOrder order_;
};

TEST_F(CaptureOrderTest, TakesRowGroupsUpToTheBudgetAndNumbersHookPoints) {
  Start();
  for (int64_t row : {0, 6}) {
    for (int index : {0, 1}) {
      CaptureEvent event = ChunkOf(index == 0 ? "a" : "b", row, row == 0 ? 6 : 4);
      ASSERT_TRUE(order_.Check(event).ok());
      EXPECT_EQ(std::get<Chunk>(event).hook_point_index(), index);
    }
  }
  EXPECT_TRUE(Check(v1::CaptureSummary()).ok());
}

TEST_F(CaptureOrderTest, BeginsAnywhereAfterAResume) {
  Start();
  EXPECT_TRUE(Check(ChunkOf("a", 7, 2)).ok());
  ExpectRefused(ChunkOf("a", 0, 1), "first_row 0 instead of 9");
}

TEST_F(CaptureOrderTest, RefusesWhatComesBeforeStartedOrAfterTheSummary) {
  ExpectRefused(ChunkOf("a", 0, 1), "before `started`");
  ExpectRefused(v1::CaptureSummary(), "before `started`");
  Start();
  ExpectRefused(Started(), "twice");
  EXPECT_TRUE(Check(v1::CaptureSummary()).ok());
  ExpectRefused(ChunkOf("a", 0, 1), "follows `summary`");
}

TEST_F(CaptureOrderTest, RefusesGrantsThatMakeNoSense) {
  ExpectRefused(v1::CaptureStarted(), "0 hook points");
  v1::CaptureStarted started = Started();
  started.set_dtype(v1::DTYPE_UNSPECIFIED);
  ExpectRefused(started, "dtype 0");
  started = Started();
  started.mutable_hook_points(1)->set_width(0);
  ExpectRefused(started, "width 0");
  started = Started();
  started.mutable_hook_points(1)->set_hook_point("a");
  ExpectRefused(started, "granted twice");
}

TEST_F(CaptureOrderTest, RefusesChunksThatContradictTheGrant) {
  Start();
  ExpectRefused(ChunkOf("c", 0, 1), "unknown hook point c");
  ExpectRefused(ChunkOf("c\x1b[31m\nforged", 0, 1), "unknown hook point c\\x1b[31m\\nforged");
  ExpectRefused(ChunkOf("a", 0, 0), "rows 0");
  ExpectRefused(ChunkOf("a", 5, 6), "exceeds the budget 10");
  ExpectRefused(ChunkOf("a", -1, 1), "exceeds the budget");
  v1::ActivationChunk header = Header("a", 0, 1);
  header.set_width(5);
  ExpectRefused(WithData(header, 10), "width 5 instead of 4");
  header = Header("a", 0, 1);
  header.set_dtype(v1::DTYPE_FLOAT32);
  ExpectRefused(WithData(header, 16), "dtype 1 instead of 2");
}

TEST_F(CaptureOrderTest, RefusesValuesThatAreNotAsManyAsTheRowsSay) {
  Start();
  ExpectRefused(WithData(Header("a", 0, 2), 15), "data bytes 15 instead of 16");
  v1::ActivationChunk header = Header("a", 0, 1);
  for (int i = 0; i < 4; ++i) header.add_values(1);
  ExpectRefused(WithData(header, 8), "data beside values");
  EXPECT_TRUE(Check(WithData(header, 0)).ok());
  header = Header("a", 1, 2);
  header.add_values(1);
  ExpectRefused(WithData(header, 0), "values 1 instead of 8");
}

TEST_F(CaptureOrderTest, RefusesProvenanceColumnsOfAnotherLength) {
  Start();
  v1::ActivationChunk header = Header("a", 0, 2);
  for (int i = 0; i < 2; ++i) {
    header.add_sequence(0);
    header.add_position(i);
  }
  ExpectRefused(WithData(header, 16), "provenance entries 0 instead of 2");
  header.add_token_id(1);
  header.add_token_id(2);
  EXPECT_TRUE(Check(WithData(header, 16)).ok());
}

// The products of rows and width exceed 32 bits, and the sums of rows exceed 64.
TEST_F(CaptureOrderTest, RefusesNumbersThatWouldOverflow) {
  v1::CaptureStarted started = Started();
  started.mutable_hook_points(0)->set_width(INT32_MAX);
  started.mutable_hook_points(0)->set_max_activations(INT64_MAX);
  ASSERT_TRUE(Check(started).ok());
  v1::ActivationChunk header = Header("a", INT64_MAX, INT32_MAX);
  header.set_width(INT32_MAX);
  ExpectRefused(WithData(header, 0), "exceeds the budget");
  header.set_first_row(0);
  ExpectRefused(WithData(header, 0), "data bytes 0 instead of");
}

}  // namespace
}  // namespace hookline::client
