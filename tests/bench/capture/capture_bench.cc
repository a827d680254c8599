// Measures what the server costs beside its forward passes, as ratios against a baseline in the same minutes.
//
//   capture_bench [--cpu-time] [overhead] [narrow] [small] [feed] [batching] [latency] [fairness]   (all of them if
//   none is named)
//
// With --cpu-time, the forward pass has one thread, and processor time of the whole process (forward pass, server and
// client) counts instead of wall time. This suits a machine with busy neighbours, but says nothing about feed, batching
// and latency.
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cpp/client.h"
#include "server/base/freed_memory.h"
#include "server/base/sha256.h"
#include "server/engine/engine.h"
#include "server/model/runtime.h"
#include "server/service/server.h"
#include "spdlog/spdlog.h"
#include "tests/bench/capture/bare_forward.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    absl::FPrintF(stderr, "%s\n", result.status().ToString());
    std::exit(1);
  }
  return *std::move(result);
}

void Must(const absl::Status& status) {
  if (!status.ok()) {
    absl::FPrintF(stderr, "%s\n", status.ToString());
    std::exit(1);
  }
}

bool cpu_time = false;

double Now() {
  timespec now;
  clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Seconds(const std::function<void()>& work) {
  const double begin = Now();
  work();
  return Now() - begin;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double Slowest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

// A model behind a server, and a client of that server.
struct Bench {
  Bench(RandomDecoderOptions decoder, EngineOptions options, const std::string& dataset = "",
        const std::string& auth_file = "") {
    auto owned = RandomDecoder(decoder);
    model = owned.get();
    std::vector<ServedModel> models;
    models.push_back(std::move(owned));
    std::vector<std::unique_ptr<const Dataset>> datasets;
    if (!dataset.empty()) datasets.push_back(Must(Dataset::Open("tokens", dataset)));
    engine = Must(Engine::Create(options, std::move(models), std::move(datasets)));
    ServerOptions server_options;
    server_options.listen = {"127.0.0.1:0"};
    server_options.auth_file = auth_file;
    server = Must(Server::Start(server_options, engine.get()));
    client = ClientWith(/*token=*/"");
  }

  std::unique_ptr<client::Client> ClientWith(const std::string& token) const {
    client::ClientOptions client_options;
    client_options.token = token;
    return Must(client::Client::Connect(absl::StrCat("127.0.0.1:", server->ports()[0]), client_options));
  }
  ~Bench() { server->Drain(absl::Now() + absl::Seconds(5)); }

  // Captures and drops the rows. Returns the number of rows of the first hook point.
  int64_t Run(const v1::CaptureRequest& request) {
    auto call = client->Capture(request);
    int64_t rows = 0;
    while (auto event = Must(call->Next())) {
      if (const auto* chunk = std::get_if<client::Chunk>(&*event)) {
        if (chunk->hook_point_index() == 0) rows = chunk->header().first_row() + chunk->header().rows();
      }
    }
    return rows;
  }

  Model* model;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Server> server;
  std::unique_ptr<client::Client> client;
};

v1::CaptureRequest TokensRequest(const std::string& hook_point, int64_t sequences, int64_t length) {
  v1::CaptureRequest request;
  request.add_hook_points(hook_point);
  for (int64_t s = 0; s < sequences; ++s) {
    auto* ids = request.mutable_tokens()->add_sequences();
    for (int64_t t = 0; t < length; ++t) ids->add_ids(static_cast<uint32_t>((s * length + t) % 251));
  }
  return request;
}

// Compares one capture with the same forward passes by themselves, in turns in the same process.
void CompareWithBareForward(const char* label, const RandomDecoderOptions& decoder, int64_t sequences, int64_t length,
                            int64_t batch) {
  Bench bench(decoder, {});
  const std::string name = "blocks.11.hook_resid_post";
  const int hook_point = bench.model->hook_points().Find(name);
  const v1::CaptureRequest request = TokensRequest(name, sequences, length);
  bench.Run(request);
  Must(RunBareForward(*bench.model, hook_point, sequences, length, batch));
  std::vector<double> bare, captured, ratios;
  for (int round = 0; round < 7; ++round) {
    bare.push_back(Seconds([&] { Must(RunBareForward(*bench.model, hook_point, sequences, length, batch)); }));
    captured.push_back(Seconds([&] { bench.Run(request); }));
    ratios.push_back(bare.back() / captured.back());
  }
  const auto tokens = static_cast<double>(sequences * length);
  absl::PrintF(
      "%s: %dx%d, %s, one capture of %d x %d tokens over gRPC %.0f tokens/s, bare forward %.0f; "
      "ratio (median of 7 pairs) %.3f\n",
      label, decoder.layers, decoder.width, name, sequences, length, tokens / Median(captured), tokens / Median(bare),
      Median(ratios));
}

void Overhead() { CompareWithBareForward("overhead", Gpt2SizedDecoder(), 16, 256, 8); }

// Does the same for a model whose forward pass leaves more of the time to the server.
void Narrow() {
  RandomDecoderOptions decoder;
  decoder.layers = 12;
  decoder.width = 128;
  CompareWithBareForward("narrow", decoder, 64, 128, 16);
}

// Compares the smallest captures, whose forward pass takes microseconds, with calls of GetModel.
void Small() {
  constexpr int kCalls = 2000, kThreads = 8;
  RandomDecoderOptions decoder;
  decoder.layers = 1;
  decoder.width = 16;
  EngineOptions options;
  options.max_batch_delay = absl::ZeroDuration();
  Bench bench(decoder, options);
  const v1::CaptureRequest request = TokensRequest("blocks.0.hook_resid_post", 1, 4);
  const auto capture = [&] { bench.Run(request); };
  const auto ask = [&] { Must(bench.client->GetModel("")); };
  const auto alone = [&](const std::function<void()>& call) {
    return Seconds([&] {
      for (int i = 0; i < kCalls; ++i) call();
    });
  };
  const auto together = [&](const std::function<void()>& call) {
    return Seconds([&] {
      std::vector<std::thread> threads;
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&] {
          for (int i = 0; i < kCalls / kThreads; ++i) call();
        });
      }
      for (std::thread& thread : threads) thread.join();
    });
  };
  capture();
  std::vector<double> captures, captures_together, ratios, ratios_together;
  for (int round = 0; round < 5; ++round) {
    captures.push_back(alone(capture));
    ratios.push_back(captures.back() / alone(ask));
    captures_together.push_back(together(capture));
    ratios_together.push_back(captures_together.back() / together(ask));
  }
  absl::PrintF(
      "small: 1x16, captures of 4 tokens one after another %.0f us each, of eight threads %.0f us each; in calls of "
      "GetModel (median of 5 pairs) %.2f and %.2f\n",
      1e6 * Median(captures) / kCalls, 1e6 * Median(captures_together) / kCalls, Median(ratios),
      Median(ratios_together));
}

// Writes a dataset of uint16 ids. Returns its path.
std::string WriteTokens(int count) {
  const std::string path = absl::StrCat("/tmp/hookline-bench-", getpid(), ".bin");
  std::ofstream out(path, std::ios::binary);
  for (int i = 0; i < count; ++i) {
    const uint16_t id = static_cast<uint16_t>(i % 251);
    out.write(reinterpret_cast<const char*>(&id), sizeof(id));
  }
  return path;
}

// Compares one pass over a dataset for eight members with one for a single member.
void Feed() {
  const std::string path = WriteTokens(64 * 1024);
  RandomDecoderOptions decoder;
  decoder.layers = 12;
  decoder.width = 128;
  Bench bench(decoder, {}, path + ":uint16");
  const auto run = [&](int members, int round) {
    std::vector<std::thread> threads;
    std::vector<int64_t> rows(static_cast<size_t>(members));
    const double seconds = Seconds([&] {
      for (int m = 0; m < members; ++m) {
        threads.emplace_back([&, m] {
          v1::CaptureRequest request;
          request.add_hook_points("blocks.11.hook_resid_post");
          auto* feed = request.mutable_feed();
          feed->set_name(absl::StrCat("feed-", members, "-", round));
          feed->mutable_dataset()->set_name("tokens");
          feed->mutable_dataset()->set_sequence_length(128);
          feed->set_start_when_subscribers(members);
          rows[m] = bench.Run(request);
        });
      }
      for (std::thread& thread : threads) thread.join();
    });
    int64_t total = 0;
    for (int64_t count : rows) total += count;
    return static_cast<double>(total) / seconds;
  };
  run(8, -1);
  std::vector<double> one, eight, ratios;
  for (int round = 0; round < 5; ++round) {
    one.push_back(run(1, round));
    eight.push_back(run(8, round));
    ratios.push_back(eight.back() / one.back());
  }
  absl::PrintF("feed: 12x128, eight members %.0f rows/s, one member %.0f; ratio (median of 5 pairs) %.2f\n",
               Median(eight), Median(one), Median(ratios));
  std::remove(path.c_str());
}

// Compares eight captures of short sequences at once with one after another, and reports the same gain of the bare
// forward pass.
void Batching() {
  Bench bench(Gpt2SizedDecoder(), {});
  const std::string name = "blocks.11.hook_resid_post";
  const int hook_point = bench.model->hook_points().Find(name);
  const v1::CaptureRequest request = TokensRequest(name, 1, 16);
  bench.Run(request);
  Must(RunBareForward(*bench.model, hook_point, 8, 16, 8));
  std::vector<double> ratios, bare_ratios, together, apart;
  for (int round = 0; round < 11; ++round) {
    apart.push_back(Seconds([&] {
      for (int i = 0; i < 8; ++i) bench.Run(request);
    }));
    together.push_back(Seconds([&] {
      std::vector<std::thread> threads;
      for (int i = 0; i < 8; ++i) threads.emplace_back([&] { bench.Run(request); });
      for (std::thread& thread : threads) thread.join();
    }));
    ratios.push_back(apart.back() / together.back());
    const double bare_apart = Seconds([&] { Must(RunBareForward(*bench.model, hook_point, 8, 16, 1)); });
    bare_ratios.push_back(bare_apart / Seconds([&] { Must(RunBareForward(*bench.model, hook_point, 8, 16, 8)); }));
  }
  absl::PrintF(
      "batching: 12x768, eight captures of 16 tokens at once %.0f tokens/s, one after another %.0f; ratio (median "
      "of 11 pairs) %.2f; of the bare forward pass %.2f\n",
      128 / Median(together), 128 / Median(apart), Median(ratios), Median(bare_ratios));
}

// Returns the time of a forward pass over `tokens` tokens, from the passes that ran between two snapshots.
double BatchSeconds(const EngineSnapshot& before, const EngineSnapshot& now, double tokens) {
  const EngineSnapshot::ModelLoad &first = before.models[0], &last = now.models[0];
  return (last.forward_seconds.sum - first.forward_seconds.sum) * tokens /
         static_cast<double>(last.tokens - first.tokens);
}

// Measures small captures while a bulky one runs, each in forward passes of a full batch at its own time: the speed of
// a virtual machine can nearly halve for a second (tests/bench/README.md), which a pass measured before would not
// share.
void Latency() {
  Bench bench(Gpt2SizedDecoder(), {});
  const std::string name = "blocks.11.hook_resid_post";
  const v1::CaptureRequest bulk = TokensRequest(name, 400, 256);
  const v1::CaptureRequest small = TokensRequest(name, 1, 16);
  auto call = bench.client->Capture(bulk);
  std::thread reader([&] {
    while (true) {
      auto event = call->Next();
      if (!event.ok() || !event->has_value()) return;
    }
  });
  // The first capture, during which the bulk one begins, does not count.
  bench.Run(small);
  std::vector<double> latencies, batches, ratios;
  for (int i = 0; i < 20; ++i) {
    const EngineSnapshot before = bench.engine->Snapshot();
    latencies.push_back(Seconds([&] { bench.Run(small); }));
    batches.push_back(BatchSeconds(before, bench.engine->Snapshot(), 2048));
    ratios.push_back(latencies.back() / batches.back());
  }
  call->Cancel();
  reader.join();
  absl::PrintF(
      "latency: 12x768, 16 tokens under a bulk capture: median %.3f s, slowest of 20 %.3f s; a batch of 2048 tokens "
      "at its time: median %.3f s, slowest %.3f s; capture / batch: median %.3f, slowest %.3f\n",
      Median(latencies), Slowest(latencies), Median(batches), Slowest(batches), Median(ratios), Slowest(ratios));
}

// Writes an auth file with clients whose tokens are their names. Returns its path.
std::string WriteClients(const std::vector<std::string>& names) {
  const std::string path = absl::StrCat("/tmp/hookline-bench-", getpid(), ".json");
  std::ofstream out(path);
  out << "{\"clients\":[";
  for (size_t i = 0; i < names.size(); ++i) {
    const Sha256 digest = Sha256Of(names[i]);
    out << (i == 0 ? "" : ",") << "{\"name\":\"" << names[i] << "\",\"token_sha256\":\""
        << absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), digest.size()})
        << "\",\"roles\":[\"read\",\"capture\"]}";
  }
  out << "]}";
  return path;
}

// Runs a bulk client with 16 captures, one with a single capture, and eight that ask for a little now and then.
void Fairness() {
  constexpr int kManyCaptures = 16, kInteractive = 8;
  constexpr absl::Duration kTime = absl::Seconds(20);
  std::vector<std::string> names = {"many", "one"};
  for (int i = 0; i < kInteractive; ++i) names.push_back(absl::StrCat("interactive", i));
  const std::string auth_file = WriteClients(names);
  RandomDecoderOptions decoder;
  decoder.layers = 12;
  decoder.width = 128;
  const std::string tokens = WriteTokens(16 << 20);  // more than a client gets through in the time
  Bench bench(decoder, {}, tokens + ":uint16", auth_file);
  const std::string name = "blocks.11.hook_resid_post";
  v1::CaptureRequest bulk;
  bulk.add_hook_points(name);
  bulk.mutable_dataset()->set_name("tokens");
  bulk.mutable_dataset()->set_sequence_length(128);
  const v1::CaptureRequest small = TokensRequest(name, 1, 16);
  std::atomic<bool> end{false};
  std::atomic<int64_t> rows[2] = {};
  std::vector<std::thread> threads;
  const auto run_bulk = [&](int client) {
    const std::unique_ptr<client::Client> own = bench.ClientWith(names[static_cast<size_t>(client)]);
    auto call = own->Capture(bulk);
    while (!end) {
      auto event = call->Next();
      if (!event.ok() || !event->has_value()) return;
      if (const auto* chunk = std::get_if<client::Chunk>(&**event)) rows[client] += chunk->header().rows();
    }
    call->Cancel();
  };
  for (int i = 0; i < kManyCaptures; ++i) threads.emplace_back(run_bulk, 0);
  threads.emplace_back(run_bulk, 1);
  std::vector<std::vector<double>> latencies(kInteractive);
  for (int i = 0; i < kInteractive; ++i) {
    threads.emplace_back([&, i] {
      const std::unique_ptr<client::Client> own = bench.ClientWith(names[static_cast<size_t>(2 + i)]);
      while (!end) {
        latencies[static_cast<size_t>(i)].push_back(Seconds([&] {
          auto call = own->Capture(small);
          while (auto event = Must(call->Next())) {
          }
        }));
        absl::SleepFor(absl::Milliseconds(100));
      }
    });
  }
  // The first seconds, in which captures begin, do not count.
  absl::SleepFor(absl::Seconds(5));
  const int64_t before[2] = {rows[0], rows[1]};
  const EngineSnapshot snapshot_before = bench.engine->Snapshot();
  absl::SleepFor(kTime);
  const double batch_seconds = BatchSeconds(snapshot_before, bench.engine->Snapshot(), 2048);
  const double many = static_cast<double>(rows[0] - before[0]), one = static_cast<double>(rows[1] - before[1]);
  end = true;
  for (std::thread& thread : threads) thread.join();
  std::vector<double> all;
  for (const auto& own : latencies) all.insert(all.end(), own.begin(), own.end());
  std::sort(all.begin(), all.end());
  const double slow = all[all.size() * 99 / 100];
  absl::PrintF(
      "fairness: 12x128, 16 captures of one client %.0f tokens/s, 1 capture of another %.0f, ratio %.3f; 8 interactive "
      "clients: median %.3f s, 99th percentile %.3f s of %d; a batch of 2048 tokens then %.3f s; 99th percentile / "
      "batch "
      "%.2f\n",
      many / absl::ToDoubleSeconds(kTime), one / absl::ToDoubleSeconds(kTime), many / one, Median(all), slow,
      all.size(), batch_seconds, slow / batch_seconds);
  std::remove(auth_file.c_str());
  std::remove(tokens.c_str());
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  spdlog::set_level(spdlog::level::warn);  // without a line for each call
  std::set<std::string> chosen(argv + 1, argv + argc);
  cpu_time = chosen.erase("--cpu-time") != 0;
  const RuntimeInfo runtime = ConfigureRuntime(cpu_time ? 1 : 0);
  utsname machine;
  uname(&machine);
  absl::PrintF("%s, %d threads, LibTorch %s, %s\n", machine.nodename, runtime.threads, runtime.libtorch, runtime.blas);
  for (const auto& [name, run] :
       {std::pair("overhead", &Overhead), std::pair("narrow", &Narrow), std::pair("small", &Small),
        std::pair("feed", &Feed), std::pair("batching", &Batching), std::pair("latency", &Latency),
        std::pair("fairness", &Fairness)}) {
    if (chosen.empty() || chosen.count(name) != 0) run();
  }
  return 0;
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) { return hookline::Main(argc, argv); }
