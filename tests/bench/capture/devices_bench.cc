// Compares a capture on several devices of the CPU with one device that has as many threads: tokens/s of both,
// in turns.
//
//   devices_bench [ROUNDS [order]]      # order: only the last three measurements
//
// The measurements are: two replicas with one thread each / one with two threads, at 1024, 128 and 16 tokens a
// sequence; one capture on two replicas, whose rows are put in order / two captures, each on any free replica; two
// stages with one thread each / one device with two threads; two stages / two replicas. The last three have batches of
// 512 tokens, 32 in a run. In the first and the last of these three, a device waits whatever order and stages cost.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/engine/engine.h"
#include "server/model/runtime.h"
#include "tests/support/random_decoder.h"
#include "tests/support/tokens.h"

namespace hookline {
namespace {

constexpr int kLayers = 6;
constexpr char kHookPoint[] = "blocks.5.hook_resid_post";

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    absl::FPrintF(stderr, "%s\n", result.status().ToString());
    std::exit(1);
  }
  return *std::move(result);
}

RandomDecoderOptions Decoder() {
  RandomDecoderOptions options = Gpt2SizedDecoder();
  options.layers = kLayers;
  return options;
}

// Takes a capture's rows as they come, and drops them.
int64_t Drain(Engine& engine, CaptureRequest request, const std::string& client) {
  absl::Mutex mutex;
  bool ready = true;
  CaptureCallbacks callbacks;
  callbacks.on_ready = [&] {
    absl::MutexLock lock(&mutex);
    ready = true;
  };
  const std::shared_ptr<Capture> capture =
      Must(engine.Start(Must(engine.Plan(std::move(request))), client, std::move(callbacks)));
  while (true) {
    {
      absl::MutexLock lock(&mutex);
      mutex.Await(absl::Condition(&ready));
      ready = false;
    }
    while (std::optional<CaptureEvent> event = capture->Next()) {
      if (const auto* ended = std::get_if<CaptureEnded>(&*event)) {
        if (!ended->status.ok()) absl::FPrintF(stderr, "%s\n", ended->status.ToString());
        return ended->tokens;
      }
    }
  }
}

CaptureRequest Request(int64_t tokens, int64_t length) {
  std::vector<std::vector<uint32_t>> sequences(static_cast<size_t>(tokens / length));
  uint32_t id = 0;
  for (auto& ids : sequences) {
    for (int64_t t = 0; t < length; ++t) ids.push_back(id++ % 251);
  }
  CaptureRequest request;
  request.hook_points = {kHookPoint};
  request.source = Tokens(sequences);
  return request;
}

struct Setup {
  int replicas = 1;
  int stages = 1;
  int64_t batch_tokens = 0;  // 0: the server's default
};

// A model on devices of the CPU. Each executor has `threads` threads.
class Bench {
 public:
  Bench(const Setup& setup, int threads) : threads_(threads) {
    ConfigureRuntime(threads);
    RandomDecoderOptions options = Decoder();
    options.stages = setup.stages;
    ServedModel served = SharedRandomDecoder(options, setup.replicas);
    std::vector<ServedModel> models;
    models.push_back(std::move(served));
    EngineOptions engine_options;
    engine_options.max_batch_tokens = setup.batch_tokens;
    engine_ = Must(Engine::Create(engine_options, std::move(models), {}));
  }

  // Returns the tokens/s of `captures` concurrent captures that have `tokens` tokens together.
  double TokensPerSecond(int64_t tokens, int64_t length, int captures = 1) {
    // The executors took over their number of threads when they began; this sets it for other threads.
    ConfigureRuntime(threads_);
    const absl::Time begin = absl::Now();
    std::vector<std::thread> clients;
    for (int i = 0; i < captures; ++i) {
      clients.emplace_back([&, i] { Drain(*engine_, Request(tokens / captures, length), absl::StrFormat("c%d", i)); });
    }
    for (std::thread& client : clients) client.join();
    return static_cast<double>(tokens) / absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  const int threads_;
  std::unique_ptr<Engine> engine_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Compare(const char* what, int rounds, const std::function<double()>& one, const std::function<double()>& other) {
  one();
  other();
  std::vector<double> ratios, ones, others;
  for (int i = 0; i < rounds; ++i) {
    ones.push_back(one());
    others.push_back(other());
    ratios.push_back(ones.back() / others.back());
  }
  absl::PrintF("%-74s %.3f  (%.0f / %.0f tokens/s)\n", what, Median(ratios), Median(ones), Median(others));
  std::fflush(stdout);
}

constexpr int64_t kTokens = 16384;

void CompareReplicas(int rounds) {
  Bench one({1, 1}, 2);
  Bench replicas({2, 1}, 1);
  for (const int64_t length : {1024, 128, 16}) {
    const std::string what = absl::StrFormat("two replicas of one thread / one of two, %d tokens a sequence", length);
    Compare(
        what.c_str(), rounds, [&] { return replicas.TokensPerSecond(kTokens, length); },
        [&] { return one.TokensPerSecond(kTokens, length); });
  }
}

void CompareOrderAndStages(int rounds) {
  constexpr int64_t kBatchTokens = 512;
  Bench one({1, 1, kBatchTokens}, 2);
  Bench replicas({2, 1, kBatchTokens}, 1);
  Bench stages({1, 2, kBatchTokens}, 1);
  Compare(
      "one capture on two replicas / two captures on two replicas", rounds,
      [&] { return replicas.TokensPerSecond(kTokens, 128); },
      [&] { return replicas.TokensPerSecond(kTokens, 128, /*captures=*/2); });
  Compare(
      "two stages of one thread / one device of two", rounds, [&] { return stages.TokensPerSecond(kTokens, 128); },
      [&] { return one.TokensPerSecond(kTokens, 128); });
  Compare(
      "two stages of one thread / two replicas of one thread", rounds,
      [&] { return stages.TokensPerSecond(kTokens, 128); }, [&] { return replicas.TokensPerSecond(kTokens, 128); });
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) {
  int rounds = 5;
  const bool is_order = argc == 3 && std::string(argv[2]) == "order";
  if (argc > 3 || (argc == 3 && !is_order) || (argc > 1 && (!absl::SimpleAtoi(argv[1], &rounds) || rounds < 1))) {
    std::fprintf(stderr, "usage: devices_bench [ROUNDS [order]]\n");
    return 2;
  }
  if (!is_order) hookline::CompareReplicas(rounds);
  hookline::CompareOrderAndStages(rounds);
  return 0;
}
