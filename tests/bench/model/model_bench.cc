// Runs a model by itself, for scripts that compare it. Loads the model, reports what that took, then runs the forward
// passes that standard input asks for.
//
//   model_bench DIR [--dtype auto] [--threads 0]
//
// First prints, as JSON, {"load_seconds", "weight_bytes", "resident_bytes", "peak_resident_bytes", "anonymous_bytes"};
// weight_bytes is what CountWeights said before the load. Then prints, for each line `HOOK_POINT BATCH POSITIONS`, the
// seconds of one forward pass over such a batch that ends at that hook point.
#include <ATen/ATen.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>

#include "server/base/freed_memory.h"
#include "server/model/load.h"
#include "server/model/runtime.h"

namespace hookline {
namespace {

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "model_bench: %s\n", why.c_str());
  std::exit(1);
}

// Returns the value of a line of this process's status, in bytes.
int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  Fail("/proc/self/status says no " + key);
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  ModelOptions options;
  int threads = 0;
  CLI::App app("Loads a model and runs it");
  app.add_option("model", options.path, "checkpoint directory or TorchScript file")->required();
  app.add_option("--dtype", options.dtype, "float32, bfloat16, float16 or auto");
  app.add_option("--threads", threads, "of one operation; 0: one for each core")->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);

  ConfigureRuntime(threads);
  const auto weights = CountWeights(options);
  if (!weights.ok()) Fail(weights.status().ToString());
  int64_t weight_bytes = 0;
  for (const auto& need : *weights) weight_bytes += need.bytes;
  const int64_t before = StatusBytes("VmRSS");
  const double start = Now();
  const auto model = LoadModel(options);
  if (!model.ok()) Fail(model.status().ToString());
  std::printf(
      "{\"load_seconds\": %.6f, \"weight_bytes\": %lld, \"resident_bytes\": %lld, \"peak_resident_bytes\": %lld, "
      "\"anonymous_bytes\": %lld}\n",
      Now() - start, static_cast<long long>(weight_bytes), static_cast<long long>(StatusBytes("VmRSS") - before),
      static_cast<long long>(StatusBytes("VmHWM") - before), static_cast<long long>(StatusBytes("RssAnon")));
  std::fflush(stdout);

  std::string name;
  int64_t batch = 0, positions = 0;
  while (std::cin >> name >> batch >> positions) {
    const int hook_point = (*model)->hook_points().Find(name);
    if (hook_point < 0) Fail("the model has no hook point " + name);
    const at::Tensor ids =
        at::arange(batch * positions, at::kLong).remainder_((*model)->info().vocabulary_size).view({batch, positions});
    const double begin = Now();
    const absl::Status status = (*model)->Forward(ids, /*lengths=*/{}, {hook_point}, [](int, const at::Tensor&) {});
    if (!status.ok()) Fail(status.ToString());
    std::printf("%.6f\n", Now() - begin);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) { return hookline::Main(argc, argv); }
