// Measures the cost of taps: the forward pass of a 12-layer, 768-wide decoder without taps against one with taps. Also
// measures the cost of everything beside matrix products: the operations per second of the pass against those of one
// product of the same library. Nothing is asserted; the figures are printed with the machine's name.
//
//   build/release/bin/forward_bench --threads 2 --rounds 15
//
// "Without taps" runs every block and hands out only the last hook point, because a pass needs one. Each round measures
// every variant once, in an order that rotates from round to round. A ratio is the median over the rounds of (time
// without) / (time with) in the same round, so that other load on the machine affects both.
#include <ATen/ATen.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "server/base/freed_memory.h"
#include "server/model/runtime.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

struct Variant {
  std::string name;
  std::vector<int> hook_points;  // ascending; the last one ends the pass
  bool copies = false;           // copies rows to host memory that was touched before, as the server does
  std::vector<double> seconds;   // by round
};

double Now(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string Processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

std::vector<Variant> MakeVariants(const Model& model) {
  const int layers = model.info().layers;
  const int end = model.hook_points().size() - 2;  // ln_final.hook_normalized
  const auto residual = [&](int layer) {
    return model.hook_points().Find("blocks." + std::to_string(layer) + ".hook_resid_post");
  };
  std::vector<int> one = {residual(layers / 2), end}, four, all;
  for (int i = 1; i <= 4; ++i) four.push_back(residual(layers * i / 4 - 1));
  for (int i = 0; i < layers; ++i) all.push_back(residual(i));
  four.push_back(end);
  all.push_back(end);
  return {{"no tap", {end}, false, {}},
          {"one tap", one, false, {}},
          {"four taps", four, false, {}},
          {"all residual taps", all, false, {}},
          {"one tap, copied", one, true, {}},
          {"four taps, copied", four, true, {}},
          {"all residual taps, copied", all, true, {}}};
}

// Repeats one product of the MLP's size until it has as many operations as a pass.
class Products {
 public:
  Products(const RandomDecoderOptions& options, int64_t batch, int64_t positions)
      : rows_(at::rand({batch * positions, options.width})),
        weight_(at::rand({options.width, 4 * options.width})),
        out_(at::empty({batch * positions, 4 * options.width})),
        repeats_(std::max<int64_t>(1, static_cast<int64_t>(OfPass(options, batch, positions) / OfOne()))) {}

  // Returns the floating-point operations of a pass: its linear layers, and the scores and sums of causal attention.
  static double OfPass(const RandomDecoderOptions& options, int64_t batch, int64_t positions) {
    const auto width = static_cast<double>(options.width), keys = static_cast<double>(positions + 1) / 2;
    return static_cast<double>(options.layers * batch * positions) * (24 * width * width + 4 * width * keys);
  }

  // Returns the number of operations of one Run.
  double operations() const { return static_cast<double>(repeats_) * OfOne(); }
  void Run() {
    for (int64_t i = 0; i < repeats_; ++i) at::mm_out(out_, rows_, weight_);
  }

 private:
  double OfOne() const { return 2.0 * static_cast<double>(rows_.numel() * weight_.size(1)); }

  const at::Tensor rows_, weight_;
  at::Tensor out_;
  const int64_t repeats_;
};

int Main(int argc, char** argv) {
  KeepFreedMemory();
  int threads = 0, rounds = 15, batch = 2;
  int64_t positions = 256;
  bool cpu_time = false;
  RandomDecoderOptions options = Gpt2SizedDecoder();
  CLI::App app("Forward passes with and without taps");
  app.add_option("--threads", threads, "of one operation; 0: one for each core")->check(CLI::Range(0, 1024));
  app.add_option("--rounds", rounds, "each measures every variant once")->check(CLI::Range(1, 10000));
  app.add_flag("--cpu-time", cpu_time, "count what one thread computes, not what passes: for a busy machine");
  app.add_option("--batch", batch, "sequences")->check(CLI::Range(1, 4096));
  app.add_option("--positions", positions, "tokens in a sequence")->check(CLI::Range(1, 1024));
  app.add_option("--layers", options.layers, "blocks; at least 4")->check(CLI::Range(4, 64));
  app.add_option("--width", options.width, "of the residual stream, a multiple of 12")->check(CLI::Range(12, 16384));
  CLI11_PARSE(app, argc, argv);

  const clockid_t clock = cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  const RuntimeInfo runtime = ConfigureRuntime(cpu_time ? 1 : threads);
  const std::unique_ptr<Model> model = RandomDecoder(options);
  const at::Tensor ids =
      at::arange(batch * positions, at::kLong).remainder_(options.vocabulary_size).view({batch, positions});
  const int64_t row_bytes = options.width * static_cast<int64_t>(sizeof(float));
  std::vector<char> host(static_cast<size_t>(ids.numel() * row_bytes * options.layers), 1);
  std::vector<Variant> variants = MakeVariants(*model);

  const auto measure = [&](const Variant& variant) {
    size_t copied = 0;
    const double start = Now(clock);
    const absl::Status status =
        model->Forward(ids, /*lengths=*/{}, variant.hook_points, [&](int hook_point, const at::Tensor& value) {
          if (!variant.copies || hook_point == variant.hook_points.back()) return;
          std::memcpy(host.data() + copied, value.data_ptr<float>(), value.nbytes());
          copied += value.nbytes();
        });
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
    return Now(clock) - start;
  };
  c10::InferenceMode inference;
  Products products(options, batch, positions);
  std::vector<double> product_seconds;  // by round
  const auto measure_products = [&] {
    const double start = Now(clock);
    products.Run();
    product_seconds.push_back(Now(clock) - start);
  };
  products.Run();
  measure(variants.front());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < variants.size(); ++i) {
      Variant& variant = variants[(i + static_cast<size_t>(round)) % variants.size()];
      variant.seconds.push_back(measure(variant));
      if (&variant == &variants.front()) measure_products();  // next to the variant without taps
    }
  }

  std::printf("%s, %u cores; LibTorch %s, %s, %d threads\n", Processor().c_str(), std::thread::hardware_concurrency(),
              runtime.libtorch.c_str(), runtime.blas.c_str(), runtime.threads);
  std::printf("%d blocks of %ld, %d x %ld tokens, float32, %d rounds, %s\n", options.layers,
              static_cast<long>(options.width), batch, static_cast<long>(positions), rounds,
              cpu_time ? "time of the computing thread" : "time by the clock");
  std::printf("%-28s %10s %12s %22s\n", "", "ms", "tokens/s", "ratio (quartiles)");
  for (const Variant& variant : variants) {
    std::vector<double> ratios;
    for (size_t i = 0; i < variant.seconds.size(); ++i) {
      ratios.push_back(variants.front().seconds[i] / variant.seconds[i]);
    }
    std::sort(ratios.begin(), ratios.end());
    const double seconds = Median(variant.seconds);
    std::printf("%-28s %10.1f %12.0f %8.3f (%.3f - %.3f)\n", variant.name.c_str(), seconds * 1e3,
                static_cast<double>(ids.numel()) / seconds, ratios[ratios.size() / 2], ratios[ratios.size() / 4],
                ratios[ratios.size() * 3 / 4]);
  }
  const double pass_operations = Products::OfPass(options, batch, positions);
  std::vector<double> shares;
  for (size_t i = 0; i < product_seconds.size(); ++i) {
    shares.push_back((pass_operations / variants.front().seconds[i]) / (products.operations() / product_seconds[i]));
  }
  std::printf("no tap against one matrix product: %.0f of %.0f GFLOP/s, ratio %.3f\n",
              pass_operations / Median(variants.front().seconds) * 1e-9,
              products.operations() / Median(product_seconds) * 1e-9, Median(shares));
  return 0;
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) { return hookline::Main(argc, argv); }
