// Tests requests that are refused: each error names the field, the value, and what the server would accept.
#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "server/base/status.h"
#include "tests/engine/engine_fixture.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kTwo = {"blocks.0.hook_resid_post", "blocks.2.hook_resid_post"};

struct BadRequest {
  friend void PrintTo(const BadRequest& request, std::ostream* out) { *out << request.name; }

  std::string name;
  std::function<void(CaptureRequest&)> change;
  absl::StatusCode code;
  std::string field;
  std::string says;
};

class BadRequestTest : public EngineTest, public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadRequestTest, Promise8ErrorsAreNamed) {
  Create();
  CaptureRequest request = Request(kTwo, Sequences({5}));
  GetParam().change(request);
  Collector collector(*engine_, request);
  EXPECT_EQ(collector.status().code(), GetParam().code) << collector.status();
  EXPECT_EQ(FieldOf(collector.status()), GetParam().field);
  EXPECT_THAT(std::string(collector.status().message()), HasSubstr(GetParam().says));
  EXPECT_EQ(Estimate(request).status(), collector.status());
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
INSTANTIATE_TEST_SUITE_P(
    , BadRequestTest,
    ::testing::ValuesIn(std::vector<BadRequest>{
        {"UnknownModel", [](auto& r) { r.model = "gpt9"; }, absl::StatusCode::kNotFound, "", "this server has fake"},
        {"NoHookPoints", [](auto& r) { r.hook_points.clear(); }, kInvalid, "hook_points", ""},
        {"UnknownHookPoint", [](auto& r) { r.hook_points = {"blocks.0.hook_resid_pots"}; }, kInvalid, "hook_points[0]",
         "blocks.0.hook_resid_post"},
        {"DuplicateHookPoint",
         [](auto& r) {
           r.hook_points = {kTwo[0], kTwo[0]};
         },
         kInvalid, "hook_points[1]", ""},
        {"WildcardWithoutMatch", [](auto& r) { r.hook_points = {"blocks.9*"}; }, kInvalid, "hook_points[0]", ""},
        {"NoSource", [](auto& r) { r.source = std::monostate{}; }, kInvalid, "source", "tokens, text, dataset, feed"},
        {"ZeroBudget", [](auto& r) { r.max_activations = 0; }, kInvalid, "max_activations", "0 is not a budget"},
        {"NegativeBudget", [](auto& r) { r.max_activations_by_hook_point[kTwo[0]] = -3; }, kInvalid,
         "max_activations_by_hook_point[\"blocks.0.hook_resid_post\"]", "-3"},
        {"BudgetForSomethingElse", [](auto& r) { r.max_activations_by_hook_point["hook_embed"] = 3; }, kInvalid,
         "max_activations_by_hook_point[\"hook_embed\"]", "not among the hook points"},
        {"NoSequences", [](auto& r) { r.source = TokenBatch{}; }, kInvalid, "tokens.sequences", "at least one"},
        {"EmptySequence",
         [](auto& r) {
           r.source = Tokens({{1}, {}});
         },
         kInvalid, "tokens.sequences[1].ids", "empty"},
        {"TokenOutOfRange",
         [](auto& r) {
           r.source = Tokens({{1, 2}, {3, 512}});
         },
         kInvalid, "tokens.sequences[1].ids[1]", "token id 512 in sequence 1 at position 1"},
        {"TooLong", [](auto& r) { r.source = Tokens({std::vector<uint32_t>(257, 1)}); }, kInvalid,
         "tokens.sequences[0].ids", "257 tokens are more than the 256"},
        {"SmallMessages", [](auto& r) { r.max_message_bytes = 100; }, kInvalid, "max_message_bytes", "16384"},
        {"LargeMessages", [](auto& r) { r.max_message_bytes = 1 << 25; }, kInvalid, "max_message_bytes", "16777216"},
        {"NegativeSkip", [](auto& r) { r.selection.skip_first = -1; }, kInvalid, "selection.skip_first", "-1"},
        {"EmptyRange", [](auto& r) { r.selection = {5, 5, 1, {}, 0, 0}; }, kInvalid, "selection.position_end", "5"},
        {"ExcludedIdOutOfRange",
         [](auto& r) {
           r.selection.exclude_token_ids = {1, 512};
         },
         kInvalid, "selection.exclude_token_ids[1]", "512"},
        {"UnknownDataset", [](auto& r) { r.source = DatasetSource{"pile", 4, 0, 0, {}, {}}; },
         absl::StatusCode::kNotFound, "", "this server has none"},
        {"BadFeedName",
         [](auto& r) {
           r.source = FeedSource{"a b", {}, 1, OnLag::kDetach};
         },
         kInvalid, "feed.name", "a b"},
        {"ForeignResumeToken", [](auto& r) { r.resume_token = "hello"; }, kInvalid, "resume_token",
         "not a resume token"},
    }),
    [](const auto& info) { return info.param.name; });

TEST_F(EngineTest, LimitsOnTokensAndHookPointsSayBothNumbers) {
  options_.max_request_tokens = 100;
  options_.max_hook_points = 3;
  Create();
  Collector tokens(*engine_, Request(kTwo, Sequences({51, 50})));
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("101"));
  EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("100"));
  Collector hook_points(*engine_, Request({"*"}, Sequences({5})));
  EXPECT_EQ(FieldOf(hook_points.status()), "hook_points");
}

TEST_F(EngineTest, LimitsTheSequencesOfAMessage) {
  options_.max_request_sequences = 3;
  Create();
  Collector sequences(*engine_, Request(kTwo, Sequences({1, 1, 1, 1})));
  EXPECT_EQ(sequences.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(sequences.status().message()),
              AllOf(HasSubstr("4 sequences"), HasSubstr("3 that"), HasSubstr("--max-request-sequences")));
}

TEST_F(EngineTest, TokensOfCapturesThatWaitAreBoundedTogether) {
  options_.max_request_tokens = 100;
  options_.max_held_tokens = 200;
  Create();
  // While the first batch computes, nothing else runs, so that the tokens of all other captures stay held.
  const CaptureRequest request = Request(kTwo, Sequences({50, 50}));
  model_->Close();
  std::vector<std::unique_ptr<Collector>> holders;
  holders.push_back(std::make_unique<Collector>(*engine_, request));
  model_->WaitUntilBlocked();
  while (holders.back()->status().ok()) {
    ASSERT_LT(holders.size(), 20u);
    holders.push_back(std::make_unique<Collector>(*engine_, request));
  }
  const absl::Status refused = holders.back()->status();
  holders.pop_back();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("with these 100"), HasSubstr("its limit of 200"), HasSubstr("--max-held-tokens")));

  // The same bound applies to a client that streams; its capture ends with the error.
  CaptureRequest streamed = request;
  streamed.source = StreamedSource{};
  Collector stream(*engine_, streamed);
  ASSERT_TRUE(stream.status().ok()) << stream.status();
  EXPECT_EQ(stream.Send(Tokens(Sequences({50, 50}))).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(stream.ReadAll().ended->status.code(), absl::StatusCode::kResourceExhausted);

  // Captures that end give back the tokens that they held.
  holders.clear();
  model_->Open();
  Collector again(*engine_, request);
  ASSERT_TRUE(again.status().ok()) << again.status();
  EXPECT_TRUE(again.ReadAll().ended->status.ok());
}

TEST_F(EngineTest, LimitsOnCapturesCountPerServerAndPerAddress) {
  options_.max_captures = 3;
  options_.max_captures_per_address = 2;
  Create();
  const CaptureRequest request = Request(kTwo, Sequences({5}));
  Collector a1(*engine_, request, "a"), a2(*engine_, request, "a"), a3(*engine_, request, "a");
  EXPECT_EQ(a3.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(a3.status().message()), HasSubstr("--max-captures-per-address"));
  // Three captures run, and as many more may wait.
  Collector b1(*engine_, request, "b"), c1(*engine_, request, "c"), c2(*engine_, request, "c");
  Collector d1(*engine_, request, "d"), d2(*engine_, request, "d");
  for (Collector* waiting : {&c1, &c2, &d1}) {
    EXPECT_TRUE(waiting->status().ok()) << waiting->status();
    EXPECT_EQ(waiting->capture().Next(), std::nullopt);
  }
  EXPECT_EQ(d2.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(d2.status().message()), HasSubstr("--max-captures)"));
  for (Collector* collector : {&a1, &a2, &b1, &c1, &c2, &d1}) EXPECT_TRUE(collector->ReadAll().ended->status.ok());
  Collector again(*engine_, request, "a");
  EXPECT_TRUE(again.status().ok()) << again.status();
  again.ReadAll();
}

}  // namespace
}  // namespace hookline
