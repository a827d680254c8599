// Tests top activations through a whole engine, with a small real model and a dictionary beside it.
#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/engine/engine.h"
#include "server/model/dictionary/dictionary.h"
#include "tests/model/parity.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr absl::Duration kLong = absl::Seconds(60);
constexpr int64_t kWidth = 32, kLatents = 48, kLength = 16, kSequences = 50;
constexpr char kHookPoint[] = "blocks.1.hook_resid_post";

std::shared_ptr<const Dictionary> MakeDictionary(DictionaryConfig::Activation activation) {
  at::manual_seed(5);
  DictionaryInfo info;
  info.name = "sae";
  info.fingerprint = std::string(32, '1');
  info.width = info.output_width = kWidth;
  info.latents = kLatents;
  DictionaryConfig config;
  config.activation = activation;
  config.k = 5;
  DictionaryWeights weights;
  weights.encoder = at::randn({kWidth, kLatents});
  weights.encoder_bias = at::randn({kLatents}) - 5;
  weights.decoder = at::randn({kLatents, kWidth});
  weights.decoder_bias = at::randn({kWidth});
  return std::make_shared<const Dictionary>(std::move(info), config, std::move(weights));
}

// A fixture whose engines have the dataset "corpus", in a file of its own.
class TopActivationsTest : public ::testing::Test {
 protected:
  TopActivationsTest() : path_(absl::StrCat("/tmp/hookline-top-activations-", getpid(), ".bin")) {
    std::ofstream file(path_, std::ios::binary);
    for (int64_t i = 0; i < kSequences * kLength; ++i) {
      ids_.push_back(static_cast<uint32_t>((i * i * 31 + 7 * i) % 257));
      const auto stored = static_cast<uint16_t>(ids_.back());
      file.write(reinterpret_cast<const char*>(&stored), sizeof(stored));
    }
  }
  ~TopActivationsTest() override { std::remove(path_.c_str()); }

  std::unique_ptr<Model> MakeModel() const {
    std::unique_ptr<Model> model = RandomDecoder({});
    const int hook_point = model->hook_points().Find(kHookPoint);
    EXPECT_TRUE(model->Attach(MakeDictionary(activation_), hook_point, hook_point).ok());
    return model;
  }

  std::unique_ptr<Engine> MakeEngine(int64_t max_batch_tokens = 64) const {
    EngineOptions options;
    options.slab_bytes = 65536;
    options.slab_count = 32;
    options.max_batch_tokens = max_batch_tokens;
    std::vector<ServedModel> models;
    models.push_back(MakeModel());
    std::vector<std::unique_ptr<const Dataset>> datasets;
    auto dataset = Dataset::Open("corpus", path_ + ":uint16");
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    datasets.push_back(*std::move(dataset));
    auto engine = Engine::Create(options, std::move(models), std::move(datasets));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  static TopActivationsRequest Request() {
    TopActivationsRequest request;
    request.dictionary = "sae";
    request.dataset.name = "corpus";
    request.dataset.sequence_length = kLength;
    request.latents = {3, 40, 7};
    request.top = 10;
    request.context = 6;
    return request;
  }

  // Returns the latents of every token, (tokens, latents), by one pass over all sequences.
  at::Tensor AllLatents() const {
    const std::unique_ptr<Model> model = MakeModel();
    std::vector<int64_t> ids(ids_.begin(), ids_.end());
    const at::Tensor tokens = at::tensor(ids, at::kLong).view({kSequences, kLength});
    const int point = model->hook_points().Find(absl::StrCat(kHookPoint, ".hook_sae_acts_post"));
    return RunModel(*model, tokens, {point})[0];
  }

  const std::string path_;
  std::vector<uint32_t> ids_;
  DictionaryConfig::Activation activation_ = DictionaryConfig::Activation::kRelu;
};

// Takes the events of one search.
class Reader {
 public:
  absl::Status Start(Engine& engine, TopActivationsRequest request) {
    auto plan = engine.PlanTopActivations(std::move(request));
    if (!plan.ok()) return plan.status();
    auto search = engine.StartTopActivations(*std::move(plan), "test", [this] {
      absl::MutexLock lock(&mutex_);
      ready_ = true;
    });
    if (!search.ok()) return search.status();
    search_ = *std::move(search);
    return absl::OkStatus();
  }

  std::optional<TopActivationsEvent> Next() {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        ready_ = false;
      }
      if (std::optional<TopActivationsEvent> event = search_->Next()) return event;
      absl::MutexLock lock(&mutex_);
      if (!mutex_.AwaitWithTimeout(absl::Condition(&ready_), kLong)) return std::nullopt;
    }
  }

  TopActivationsEnded ReadAll() {
    while (std::optional<TopActivationsEvent> event = Next()) {
      if (auto* ended = std::get_if<TopActivationsEnded>(&*event)) return std::move(*ended);
      if (auto* one = std::get_if<TopActivationsCheckpoint>(&*event)) checkpoints.push_back(std::move(*one));
    }
    ADD_FAILURE() << "no end";
    return {};
  }

  void Leave() { search_.reset(); }

  std::vector<TopActivationsCheckpoint> checkpoints;

 private:
  absl::Mutex mutex_;
  bool ready_ = false;
  std::shared_ptr<TopActivationsSearch> search_;
};

void ExpectSame(const TopActivationsCheckpoint& got, const TopActivationsCheckpoint& expected) {
  EXPECT_EQ(got.sequences, expected.sequences);
  EXPECT_EQ(got.ignored_tokens, expected.ignored_tokens);
  ASSERT_EQ(got.latents.size(), expected.latents.size());
  for (size_t l = 0; l < got.latents.size(); ++l) {
    const LatentFindings &a = got.latents[l].findings, &b = expected.latents[l].findings;
    EXPECT_EQ(got.latents[l].latent, expected.latents[l].latent);
    EXPECT_EQ(a.firings, b.firings);
    ASSERT_EQ(a.examples.size(), b.examples.size());
    for (size_t i = 0; i < a.examples.size(); ++i) {
      EXPECT_EQ(a.examples[i].sequence, b.examples[i].sequence);
      EXPECT_EQ(a.examples[i].position, b.examples[i].position);
      EXPECT_NEAR(a.examples[i].activation, b.examples[i].activation, 1e-4);
      EXPECT_EQ(a.examples[i].token_ids, b.examples[i].token_ids);
    }
    EXPECT_NEAR(a.Quantile(0.5), b.Quantile(0.5), 1e-4);
  }
}

// Activations go up to 31, and batches of another size change the last bits.
constexpr double kNear = 1e-4;

TEST_F(TopActivationsTest, ExamplesCountsAndQuantilesAreThoseOfAllRows) {
  for (const auto activation : {DictionaryConfig::Activation::kRelu, DictionaryConfig::Activation::kTopK}) {
    activation_ = activation;
    SCOPED_TRACE(static_cast<int>(activation));
    const at::Tensor all = AllLatents();
    const auto engine = MakeEngine();
    Reader reader;
    ASSERT_TRUE(reader.Start(*engine, Request()).ok());
    const TopActivationsEnded ended = reader.ReadAll();
    ASSERT_TRUE(ended.status.ok()) << ended.status;
    EXPECT_EQ(ended.found.sequences, kSequences);
    EXPECT_EQ(ended.tokens, kSequences * kLength);
    ASSERT_THAT(ended.found.latents, SizeIs(3));
    for (const LatentFinding& one : ended.found.latents) {
      SCOPED_TRACE(one.latent);
      const at::Tensor column = all.select(1, one.latent).contiguous();
      std::vector<float> values;
      for (int64_t i = 0; i < column.size(0); ++i) {
        const float value = column.data_ptr<float>()[i];
        if (value > 0) values.push_back(value);
      }
      ASSERT_GE(values.size(), 10u);
      EXPECT_EQ(one.findings.firings, static_cast<int64_t>(values.size()));
      std::sort(values.begin(), values.end());
      EXPECT_NEAR(one.findings.Quantile(0.5), values[(values.size() + 1) / 2 - 1], kNear);
      EXPECT_NEAR(one.findings.Quantile(1), values.back(), kNear);
      ASSERT_THAT(one.findings.examples, SizeIs(10));
      for (size_t i = 0; i < 10; ++i) {
        const LatentExample& example = one.findings.examples[i];
        const int64_t token = example.sequence * kLength + example.position;
        EXPECT_NEAR(example.activation, values[values.size() - 1 - i], kNear);
        EXPECT_NEAR(example.activation, column.data_ptr<float>()[token], kNear);
        ASSERT_THAT(example.token_ids, SizeIs(6));
        for (size_t t = 0; t < 6; ++t) {
          const auto at = example.sequence * kLength + example.first_position + static_cast<int64_t>(t);
          EXPECT_EQ(example.token_ids[t], ids_[static_cast<size_t>(at)]);
          EXPECT_NEAR(example.activations[t], column.data_ptr<float>()[at], kNear);
        }
      }
    }
  }
}

TEST_F(TopActivationsTest, AnotherEngineGoesOnFromACheckpointWithTheSameAnswer) {
  const auto engine = MakeEngine();
  Reader whole;
  ASSERT_TRUE(whole.Start(*engine, Request()).ok());
  const TopActivationsEnded expected = whole.ReadAll();
  TopActivationsRequest request = Request();
  request.checkpoint_sequences = 10;
  Reader cut;
  ASSERT_TRUE(cut.Start(*engine, request).ok());
  TopActivationsCheckpoint checkpoint;
  while (std::optional<TopActivationsEvent> event = cut.Next()) {
    if (auto* one = std::get_if<TopActivationsCheckpoint>(&*event)) {
      checkpoint = std::move(*one);
      break;
    }
  }
  cut.Leave();
  EXPECT_GE(checkpoint.sequences, 10);
  EXPECT_LT(checkpoint.sequences, kSequences);
  // The other engine forms other batches, too.
  const auto other = MakeEngine(/*max_batch_tokens=*/200);
  request.resume = checkpoint;
  Reader rest;
  ASSERT_TRUE(rest.Start(*other, request).ok());
  ExpectSame(rest.ReadAll().found, expected.found);
  // A checkpoint of everything gives the same answer.
  request.resume = expected.found;
  Reader nothing;
  ASSERT_TRUE(nothing.Start(*other, request).ok());
  ExpectSame(nothing.ReadAll().found, expected.found);
}

TEST_F(TopActivationsTest, ShuffledSequencesGiveTheSameAnswerAndIgnoredTokensNone) {
  const auto engine = MakeEngine();
  Reader ordered, shuffled, ignoring;
  TopActivationsRequest request = Request();
  ASSERT_TRUE(ordered.Start(*engine, request).ok());
  request.dataset.shuffle_seed = 9;
  ASSERT_TRUE(shuffled.Start(*engine, request).ok());
  const TopActivationsEnded expected = ordered.ReadAll();
  ExpectSame(shuffled.ReadAll().found, expected.found);
  const LatentExample& strongest = expected.found.latents[0].findings.examples[0];
  const uint32_t id = ids_[static_cast<size_t>(strongest.sequence * kLength + strongest.position)];
  request.ignore_token_ids = {id};
  ASSERT_TRUE(ignoring.Start(*engine, request).ok());
  const TopActivationsEnded ended = ignoring.ReadAll();
  EXPECT_EQ(ended.found.ignored_tokens, std::count(ids_.begin(), ids_.end(), id));
  for (const LatentExample& example : ended.found.latents[0].findings.examples) {
    EXPECT_NE(ids_[static_cast<size_t>(example.sequence * kLength + example.position)], id);
  }
}

TEST_F(TopActivationsTest, WhatCannotBeAnsweredIsRefusedByField) {
  const auto engine = MakeEngine();
  const auto refused = [&](const auto& change) {
    TopActivationsRequest request = Request();
    change(request);
    return engine->PlanTopActivations(std::move(request)).status();
  };
  const auto message = [&](const auto& change) { return std::string(refused(change).message()); };
  using R = TopActivationsRequest;
  EXPECT_THAT(message([](R& r) { r.dictionary = "other"; }), HasSubstr("this server has sae"));
  EXPECT_THAT(message([](R& r) { r.latents.clear(); }), HasSubstr("latents: has 0"));
  EXPECT_THAT(message([](R& r) { r.latents[1] = kLatents; }), HasSubstr("latents[1]: 48 is not a latent, 0 to 47"));
  EXPECT_THAT(message([](R& r) { r.latents[1] = 3; }), HasSubstr("latents[1]: 3 is given twice"));
  EXPECT_THAT(message([](R& r) { r.top = -1; }), HasSubstr("top: -1"));
  EXPECT_THAT(message([](R& r) { r.context = 2000; }), HasSubstr("context: 2000"));
  EXPECT_THAT(message([](R& r) { r.quantiles = {0.5, 1.5}; }), HasSubstr("quantiles[1]: 1.5"));
  EXPECT_THAT(message([](R& r) { r.dataset.name = "pile"; }), HasSubstr("dataset.name"));
  EXPECT_THAT(message([](R& r) { r.dataset.epochs = 2; }), HasSubstr("dataset.epochs"));
  EXPECT_THAT(message([](R& r) { r.checkpoint_sequences = -1; }), HasSubstr("checkpoint_sequences"));
  EXPECT_THAT(message([](R& r) { r.resume.emplace().digest = "1"; }), HasSubstr("resume.digest"));
  EXPECT_EQ(refused([](R& r) {
              r.top = 10000;
              r.context = 1000;
            }).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(TopActivationsTest, ASearchThatIsLeftEndsAndADrainedEngineEndsTheOthers) {
  const auto engine = MakeEngine();
  Reader left, drained;
  ASSERT_TRUE(left.Start(*engine, Request()).ok());
  left.Leave();
  ASSERT_TRUE(drained.Start(*engine, Request()).ok());
  engine->Drain(absl::Now());
  const absl::Status status = drained.ReadAll().status;
  EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::IsUnavailable(Reader().Start(*engine, Request())));
}

}  // namespace
}  // namespace hookline
