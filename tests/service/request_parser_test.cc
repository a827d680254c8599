#include "server/service/wire/request_parser.h"

#include <random>
#include <string>
#include <variant>

#include "gmock/gmock.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/support/slice.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/base/status.h"
#include "server/engine/options.h"
#include "tests/support/tokens.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// Returns `bytes` as gRPC may deliver them: cut into slices anywhere, here after every `slice_bytes` bytes.
grpc::ByteBuffer ToByteBuffer(const std::string& bytes, size_t slice_bytes = 5) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += slice_bytes) slices.emplace_back(bytes.substr(at, slice_bytes));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::StatusOr<CaptureRequest> Parse(const v1::CaptureRequest& request) {
  return ParseCaptureRequest(ToByteBuffer(request.SerializeAsString()), EngineOptions().token_limits());
}

TEST(RequestParser, ReadsEveryFieldOfARequest) {
  v1::CaptureRequest request;
  request.set_model("demo");
  request.add_hook_points("blocks.*.hook_resid_post");
  request.add_hook_points("hook_embed");
  request.set_max_activations(100);
  (*request.mutable_max_activations_by_hook_point())["hook_embed"] = 7;
  request.set_dtype(v1::DTYPE_FLOAT16);
  request.set_encoding(v1::ENCODING_VALUES);
  v1::Selection& selection = *request.mutable_selection();
  selection.set_skip_first(1);
  selection.set_position_end(9);
  selection.set_position_stride(2);
  selection.add_exclude_token_ids(256);
  selection.set_sample_rows(3);
  selection.set_seed(uint64_t{1} << 63);
  selection.set_last_only(true);
  request.set_top_k(8);
  request.set_statistics_only(true);
  request.set_provenance(true);
  request.set_max_message_bytes(16384);
  request.set_deterministic(true);
  request.set_resume_token("token");
  for (uint32_t first : {256U, 4294967295U}) {
    v1::TokenSequence& sequence = *request.mutable_tokens()->add_sequences();
    sequence.add_ids(first);
    sequence.add_ids(72);
  }

  absl::StatusOr<CaptureRequest> parsed = Parse(request);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->model, "demo");
  EXPECT_THAT(parsed->hook_points, ElementsAre("blocks.*.hook_resid_post", "hook_embed"));
  EXPECT_EQ(parsed->max_activations, 100);
  EXPECT_THAT(parsed->max_activations_by_hook_point, ElementsAre(Pair("hook_embed", 7)));
  EXPECT_EQ(parsed->dtype, Dtype::kFloat16);
  EXPECT_EQ(parsed->encoding, Encoding::kValues);
  EXPECT_EQ(parsed->selection.skip_first, 1);
  EXPECT_EQ(parsed->selection.position_end, 9);
  EXPECT_EQ(parsed->selection.position_stride, 2);
  EXPECT_THAT(parsed->selection.exclude_token_ids, ElementsAre(256));
  EXPECT_EQ(parsed->selection.sample_rows, 3);
  EXPECT_EQ(parsed->selection.seed, uint64_t{1} << 63);
  EXPECT_TRUE(parsed->selection.last_only);
  EXPECT_EQ(parsed->top_k, 8);
  EXPECT_TRUE(parsed->statistics_only);
  EXPECT_TRUE(parsed->provenance);
  EXPECT_EQ(parsed->max_message_bytes, 16384);
  EXPECT_TRUE(parsed->deterministic);
  EXPECT_EQ(parsed->resume_token, "token");
  ASSERT_TRUE(std::holds_alternative<TokenBatch>(parsed->source));
  EXPECT_THAT(SequencesOf(std::get<TokenBatch>(parsed->source)),
              ElementsAre(ElementsAre(256, 72), ElementsAre(4294967295, 72)));
}

TEST(RequestParser, FillsInWhatTheProtoSaysOfUnsetFields) {
  absl::StatusOr<CaptureRequest> parsed = Parse(v1::CaptureRequest());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(std::holds_alternative<std::monostate>(parsed->source));
  EXPECT_EQ(parsed->max_activations, std::nullopt);
  EXPECT_EQ(parsed->dtype, Dtype::kFloat32);
  EXPECT_EQ(parsed->encoding, Encoding::kBytes);
  EXPECT_EQ(parsed->selection.position_stride, 1);
  EXPECT_EQ(parsed->max_message_bytes, 0);
}

TEST(RequestParser, ReadsDatasetsAndFeeds) {
  v1::CaptureRequest request;
  v1::FeedSource& feed = *request.mutable_feed();
  feed.set_name("shared");
  feed.set_start_when_subscribers(3);
  feed.set_on_lag(v1::ON_LAG_WAIT);
  v1::DatasetSource& dataset = *feed.mutable_dataset();
  dataset.set_name("pile");
  dataset.set_sequence_length(128);
  dataset.set_first_sequence(5);
  dataset.set_sequence_count(6);
  dataset.set_prepend_token_id(0);
  dataset.set_shuffle_seed(0);
  dataset.set_epochs(2);
  dataset.set_skip_sequences(3);
  DatasetSource expected{"pile", 128, 5, 6, 0U, 0U, 2, 3};

  absl::StatusOr<CaptureRequest> parsed = Parse(request);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto& feed_source = std::get<FeedSource>(parsed->source);
  EXPECT_EQ(feed_source.name, "shared");
  EXPECT_EQ(feed_source.start_when_subscribers, 3);
  EXPECT_EQ(feed_source.on_lag, OnLag::kWait);
  EXPECT_EQ(feed_source.dataset, expected);

  *request.mutable_dataset() = v1::DatasetSource(dataset);
  request.mutable_dataset()->set_name("pile");
  parsed = Parse(request);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(std::get<DatasetSource>(parsed->source).name, "pile");
  EXPECT_FALSE(std::get<DatasetSource>(parsed->source) == DatasetSource{});
}

TEST(RequestParser, RefusesEnumNumbersWithoutANameListingThoseThereAre) {
  v1::CaptureRequest request;
  request.set_dtype(static_cast<v1::Dtype>(9));
  absl::Status status = Parse(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(status), "dtype");
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("9"), HasSubstr("DTYPE_FLOAT32, DTYPE_BFLOAT16, DTYPE_FLOAT16")));

  request.clear_dtype();
  request.set_encoding(static_cast<v1::Encoding>(-1));
  EXPECT_EQ(FieldOf(Parse(request).status()), "encoding");
  request.clear_encoding();
  request.mutable_feed()->set_on_lag(static_cast<v1::OnLag>(3));
  EXPECT_EQ(FieldOf(Parse(request).status()), "feed.on_lag");
}

TEST(RequestParser, RefusesTwoSources) {
  v1::CaptureRequest tokens;
  tokens.mutable_tokens()->add_sequences()->add_ids(1);
  v1::CaptureRequest dataset;
  dataset.mutable_dataset()->set_name("pile");
  absl::Status status = ParseCaptureRequest(ToByteBuffer(dataset.SerializeAsString() + tokens.SerializeAsString()),
                                            EngineOptions().token_limits())
                            .status();
  EXPECT_EQ(FieldOf(status), "tokens");
}

TEST(RequestParser, ReadsUnpackedIdsAndSkipsFieldsOfLaterVersions) {
  // The sequence has two ids with a tag each, then field 15 (varint); the batch and the request have field 200 (bytes).
  const std::string sequence = {0x08, 0x05, 0x08, 0x06, 0x78, 0x01};
  const std::string unknown = {'\xc2', '\x0c', 0x02, 'h', 'i'};
  const std::string batch = std::string{0x0a, static_cast<char>(sequence.size())} + sequence + unknown;
  const std::string request = std::string{0x1a, static_cast<char>(batch.size())} + batch + unknown;
  absl::StatusOr<CaptureRequest> parsed = ParseCaptureRequest(ToByteBuffer(request), EngineOptions().token_limits());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(SequencesOf(std::get<TokenBatch>(parsed->source)), ElementsAre(ElementsAre(5, 6)));
}

TEST(RequestParser, ReadsABatchUpToItsFirstEmptySequence) {
  v1::CaptureRequest request;
  request.mutable_tokens()->add_sequences()->add_ids(1);
  for (int i = 0; i < 1000; ++i) request.mutable_tokens()->add_sequences();
  absl::StatusOr<CaptureRequest> parsed = Parse(request);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(SequencesOf(std::get<TokenBatch>(parsed->source)), ElementsAre(ElementsAre(1), IsEmpty()));
}

TEST(RequestParser, CountsButDoesNotKeepWhatIsBeyondTheLimits) {
  TokenLimits limits = EngineOptions().token_limits();
  limits.max_request_tokens = 5;
  limits.max_request_sequences = 3;
  const auto parse = [&](const std::vector<int>& lengths) {
    v1::CaptureRequest request;
    for (int length : lengths) {
      v1::TokenSequence& sequence = *request.mutable_tokens()->add_sequences();
      for (int t = 0; t < length; ++t) sequence.add_ids(t);
    }
    return ParseCaptureRequest(ToByteBuffer(request.SerializeAsString()), limits);
  };
  EXPECT_TRUE(parse({2, 2, 1}).ok());
  EXPECT_EQ(parse({3, 3, 9}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(parse({3, 3, 9}).status().message()),
              AllOf(HasSubstr("15 tokens"), HasSubstr("the 5 that"), HasSubstr("--max-request-tokens")));
  EXPECT_EQ(parse({1, 1, 1, 1}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(parse({1, 1, 1, 1}).status().message()),
              AllOf(HasSubstr("4 sequences"), HasSubstr("the 3 that"), HasSubstr("--max-request-sequences")));
}

TEST(RequestParser, RefusesARequestThatIsLargeBesidesItsTokens) {
  v1::CaptureRequest request;
  request.add_hook_points(std::string((4 << 20) + 1, 'h'));
  absl::Status status =
      ParseCaptureRequest(ToByteBuffer(request.SerializeAsString(), 1 << 16), EngineOptions().token_limits()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4194304"));
}

TEST(RequestParser, RefusesEveryMessageThatIsCut) {
  v1::CaptureStreamRequest request;
  request.mutable_request()->set_model("demo");
  request.mutable_request()->add_hook_points("hook_embed");
  v1::CaptureStreamRequest tokens;
  tokens.mutable_tokens()->add_sequences()->add_ids(70000);
  tokens.mutable_tokens()->add_sequences()->add_ids(1);
  for (const v1::CaptureStreamRequest& message : {request, tokens}) {
    const std::string bytes = message.SerializeAsString();
    ASSERT_TRUE(ParseCaptureStreamRequest(ToByteBuffer(bytes), EngineOptions().token_limits()).ok());
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_EQ(ParseCaptureStreamRequest(ToByteBuffer(bytes.substr(0, length)), EngineOptions().token_limits())
                    .status()
                    .code(),
                absl::StatusCode::kInvalidArgument)
          << "cut to " << length << " of " << bytes.size() << " bytes";
    }
  }
}

TEST(RequestParser, SurvivesRandomChangesToARequest) {
  v1::CaptureRequest request;
  request.add_hook_points("hook_embed");
  request.mutable_feed()->mutable_dataset()->set_name("pile");
  v1::CaptureRequest with_tokens;
  for (int i = 0; i < 4; ++i) with_tokens.mutable_tokens()->add_sequences()->add_ids(1000 * i);
  google::protobuf::LogSilencer silencer;  // protobuf logs every string that is not UTF-8
  std::mt19937 random(3);
  for (const std::string& original : {request.SerializeAsString(), with_tokens.SerializeAsString()}) {
    for (int i = 0; i < 20000; ++i) {
      std::string changed = original;
      for (int change = 0; change < 3; ++change) changed[random() % changed.size()] = static_cast<char>(random());
      // The bytes are a message only by chance, but parsing must always end.
      (void)ParseCaptureRequest(ToByteBuffer(changed), EngineOptions().token_limits());
      (void)ParseCaptureStreamRequest(ToByteBuffer(changed), EngineOptions().token_limits());
      (void)ParseEstimateCaptureRequest(ToByteBuffer(changed), EngineOptions().token_limits());
    }
  }
}

TEST(RequestParser, TakesFromAStreamMessageOneOfItsKinds) {
  v1::CaptureStreamRequest message;
  message.mutable_request()->set_model("demo");
  auto parsed = ParseCaptureStreamRequest(ToByteBuffer(message.SerializeAsString()), EngineOptions().token_limits());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(std::get<CaptureRequest>(*parsed).model, "demo");

  v1::CaptureStreamRequest tokens;
  tokens.mutable_tokens()->add_sequences()->add_ids(3);
  parsed = ParseCaptureStreamRequest(ToByteBuffer(tokens.SerializeAsString()), EngineOptions().token_limits());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(SequencesOf(std::get<TokenBatch>(*parsed)), ElementsAre(ElementsAre(3)));

  parsed = ParseCaptureStreamRequest(ToByteBuffer(tokens.SerializeAsString() + message.SerializeAsString()),
                                     EngineOptions().token_limits());
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("two of `request`, `tokens` and `text`"));
}

TEST(RequestParser, ReadsTheCaptureOfAnEstimate) {
  v1::EstimateCaptureRequest message;
  message.mutable_capture()->add_hook_points("hook_embed");
  message.mutable_capture()->mutable_tokens()->add_sequences()->add_ids(3);
  absl::StatusOr<CaptureRequest> parsed =
      ParseEstimateCaptureRequest(ToByteBuffer(message.SerializeAsString()), EngineOptions().token_limits());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->hook_points, ElementsAre("hook_embed"));
  EXPECT_THAT(SequencesOf(std::get<TokenBatch>(parsed->source)), ElementsAre(ElementsAre(3)));
}

}  // namespace
}  // namespace hookline
