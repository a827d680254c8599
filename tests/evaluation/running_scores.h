// Runs scorings through a whole engine with a small real model, for the tests here.
#ifndef HOOKLINE_TESTS_EVALUATION_RUNNING_SCORES_H_
#define HOOKLINE_TESTS_EVALUATION_RUNNING_SCORES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/engine/engine.h"
#include "tests/support/random_decoder.h"

namespace hookline {

// Nothing here takes this long.
inline constexpr absl::Duration kLong = absl::Seconds(60);

inline std::unique_ptr<Engine> MakeEngine(int64_t max_batch_tokens = 64, EngineOptions options = {}) {
  options.slab_bytes = 65536;
  options.slab_count = 32;
  options.max_batch_tokens = max_batch_tokens;
  options.max_captures = 12;  // one client may have a quarter of them
  std::vector<ServedModel> models;
  models.push_back(RandomDecoder({}));
  auto engine = Engine::Create(options, std::move(models), /*datasets=*/{});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

inline TokenBatch Tokens(int sequences, int length) {
  TokenBatch tokens;
  for (int i = 0; i < sequences; ++i) {
    for (int t = 0; t < length; ++t) tokens.Append(static_cast<uint32_t>((7 * i + 3 * t) % 257));
    tokens.EndSequence();
  }
  return tokens;
}

// Takes the events of one scoring.
class Reader {
 public:
  absl::Status Start(Engine& engine, ScoreRequest request) {
    auto plan = engine.PlanScore(std::move(request));
    if (!plan.ok()) return plan.status();
    auto scoring = engine.StartScore(*std::move(plan), "test", [this] {
      absl::MutexLock lock(&mutex_);
      ready_ = true;
    });
    if (!scoring.ok()) return scoring.status();
    scoring_ = *std::move(scoring);
    return absl::OkStatus();
  }

  // Returns the next event; none if no event came in a long time.
  std::optional<ScoreEvent> Next() {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        ready_ = false;
      }
      if (std::optional<ScoreEvent> event = scoring_->Next()) return event;
      absl::MutexLock lock(&mutex_);
      if (!mutex_.AwaitWithTimeout(absl::Condition(&ready_), kLong)) return std::nullopt;
    }
  }

  ScoreEnded ReadAll() {
    while (std::optional<ScoreEvent> event = Next()) {
      if (auto* ended = std::get_if<ScoreEnded>(&*event)) return std::move(*ended);
      if (auto* scored = std::get_if<ScoredSequence>(&*event)) scores.push_back(std::move(*scored));
    }
    ADD_FAILURE() << "no end";
    return {};
  }

  void Leave() { scoring_.reset(); }

  Scoring& scoring() { return *scoring_; }

  std::vector<ScoredSequence> scores;

 private:
  absl::Mutex mutex_;
  bool ready_ = false;
  std::shared_ptr<Scoring> scoring_;
};

// Returns the float32 bytes of a deterministic capture of sequences that fill several batches.
inline std::string DeterministicRows(Engine& engine) {
  CaptureRequest request;
  request.hook_points = {"blocks.1.hook_resid_post"};
  request.source = Tokens(40, 16);
  request.deterministic = true;
  auto plan = engine.Plan(std::move(request));
  EXPECT_TRUE(plan.ok()) << plan.status();
  absl::Mutex mutex;
  bool ready = false;
  CaptureCallbacks callbacks;
  callbacks.on_ready = [&] {
    absl::MutexLock lock(&mutex);
    ready = true;
  };
  callbacks.on_source_room = [] {};
  auto capture = engine.Start(*std::move(plan), "other", std::move(callbacks));
  EXPECT_TRUE(capture.ok()) << capture.status();
  std::string rows;
  while (true) {
    {
      absl::MutexLock lock(&mutex);
      ready = false;
    }
    std::optional<CaptureEvent> event = (*capture)->Next();
    if (!event.has_value()) {
      absl::MutexLock lock(&mutex);
      if (!mutex.AwaitWithTimeout(absl::Condition(&ready), kLong)) break;
      continue;
    }
    if (std::holds_alternative<CaptureEnded>(*event)) return rows;
    if (const auto* chunk = std::get_if<Chunk>(&*event)) {
      for (const SlabSpan& span : chunk->data)
        rows.append(reinterpret_cast<const char*>(span.data()), static_cast<size_t>(span.bytes));
    }
  }
  ADD_FAILURE() << "no end";
  return rows;
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_EVALUATION_RUNNING_SCORES_H_
