// hookline-server: flags -> models, engine, gRPC server; signals; exit codes.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/base/file_system.h"
#include "server/base/freed_memory.h"
#include "server/base/status.h"
#include "server/capture/engine.h"
#include "server/capture/recorder.h"
#include "server/dataset/dataset.h"
#include "server/flags.h"
#include "server/model/check_models.h"
#include "server/model/load.h"
#include "server/model/runtime.h"
#include "server/recording/catalog.h"
#include "server/service/library_logs.h"
#include "server/service/metrics.h"
#include "server/service/server.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// The signals that end the server, taken by a thread of its own: a handler could do nothing but set a flag. To be
// created before any other thread, so that all inherit the mask.
class EndSignals {
 public:
  EndSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    // Detached, since it waits for ever; what it uses lives as long as the process.
    std::thread([this] { Run(); }).detach();
  }

  // From now on a first signal only ends Wait(). Before, while there is nothing to drain, it ends the process.
  void Serve() { serving_ = true; }

  void Wait() { first_.WaitForNotification(); }

 private:
  void Run() {
    if (const int signal = Next(); !serving_) Die(signal);
    spdlog::info("ending in good order; a second signal ends at once");
    first_.Notify();
    Die(Next());
  }

  int Next() {
    int signal = 0;
    while (sigwait(&set_, &signal) != 0) {
    }
    return signal;
  }

  // As the signal would have done, so that whoever started us sees why.
  [[noreturn]] void Die(int signal) {
    std::signal(signal, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
    std::raise(signal);
    std::_Exit(kExitFailure);
  }

  sigset_t set_;
  std::atomic<bool> serving_{false};
  absl::Notification first_;
};

// Written beside and renamed, so that whoever waits for it reads all of it.
absl::Status WritePortFile(const std::string& path, int port) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial);
  file << port << '\n';
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write --port-file ", path));
  }
  return absl::OkStatus();
}

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix");
}

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const ServerFlags& flags) {
  // Datasets first: they are checked in seconds.
  std::vector<std::unique_ptr<const Dataset>> datasets;
  for (const DatasetFlag& flag : flags.datasets) {
    ASSIGN_OR_RETURN(std::unique_ptr<const Dataset> dataset, Dataset::Open(flag.name, flag.source));
    spdlog::info("dataset {}: {} tokens of {}", dataset->name(), dataset->tokens(),
                 std::string(TokenDtypeName(dataset->dtype())));
    datasets.push_back(std::move(dataset));
  }
  RETURN_IF_ERROR(CheckModels(flags.models));
  std::vector<std::unique_ptr<Model>> models;
  for (ModelOptions options : flags.models) {
    options.max_sequence_length = flags.engine.max_sequence_length;
    const absl::Time start = absl::Now();
    ASSIGN_OR_RETURN(std::unique_ptr<Model> model, LoadModel(options));
    const ModelInfo& info = model->info();
    spdlog::info("model {}: {} {}, {}, {} parameters as {} on {} in {}; fingerprint {}", info.name, info.architecture,
                 info.variant, info.details, info.parameters, std::string(DtypeName(info.dtype)), info.device,
                 absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))), info.fingerprint);
    if (!info.warning.empty()) spdlog::warn("model {}: {}", info.name, info.warning);
    models.push_back(std::move(model));
  }
  EngineOptions options = flags.engine;
  // Nothing takes slabs where nothing is computed; this many an engine wants at least.
  if (models.empty()) options.slab_count = std::min<int64_t>(options.slab_count, 8);
  return Engine::Create(options, std::move(models), std::move(datasets));
}

absl::StatusOr<std::unique_ptr<Catalog>> OpenCatalog(const ServerFlags& flags) {
  auto directory = OpenDirectory(flags.recordings_dir);
  if (!directory.ok()) {
    return absl::Status(directory.status().code(), absl::StrCat("--recordings-dir: ", directory.status().message(),
                                                                "; give a directory that is there"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, Catalog::Open(*std::move(directory), flags.recordings));
  for (const std::string& note : catalog->notes()) spdlog::warn("recordings: {}", note);
  spdlog::info("recordings in {}: {} bytes", flags.recordings_dir, catalog->used_bytes());
  return catalog;
}

absl::Status Run(const ServerFlags& flags, EndSignals& signals) {
  const RuntimeInfo runtime = ConfigureRuntime(flags.threads);
  spdlog::info("LibTorch {}, {} threads, matrix products by {}", runtime.libtorch, runtime.threads, runtime.blas);
  if (runtime.reference_blas) {
    spdlog::warn("this is the reference BLAS, tens of times slower than others; install libopenblas0-openmp");
  }
  // Before the models, which take longer to load.
  std::unique_ptr<Catalog> catalog;
  if (!flags.recordings_dir.empty()) {
    ASSIGN_OR_RETURN(catalog, OpenCatalog(flags));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, CreateEngine(flags));
  std::unique_ptr<MetricsServer> metrics;
  if (!flags.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics, MetricsServer::Start(flags.metrics_listen, engine.get()));
    spdlog::info("metrics at {} (port {}), /metrics", flags.metrics_listen, metrics->port());
  }
  std::unique_ptr<Recorder> recorder;
  if (catalog != nullptr) recorder = std::make_unique<Recorder>(engine.get(), catalog.get());
  // Addresses are opened last: whoever is answered finds the weights on their device.
  ASSIGN_OR_RETURN(std::unique_ptr<Server> server, Server::Start(flags.server, engine.get(), recorder.get()));
  signals.Serve();
  for (size_t i = 0; i < flags.server.listen.size(); ++i) {
    const std::string& address = flags.server.listen[i];
    spdlog::info("listening on {} (port {})", address, server->ports()[i]);
    if (!IsLoopback(address)) {
      spdlog::warn("{} is reachable from other machines, without authentication", address);
    }
  }
  if (!flags.port_file.empty()) RETURN_IF_ERROR(WritePortFile(flags.port_file, server->ports()[0]));
  signals.Wait();
  server->Drain(absl::Now() + flags.drain_timeout);
  spdlog::info("ended");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  ServerFlags flags;
  if (std::optional<int> exit_code = ParseFlags(argc, argv, &flags); exit_code.has_value()) return *exit_code;
  spdlog::set_default_logger(spdlog::stderr_color_mt("hookline"));
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  RouteLibraryLogs();
  // Writing to a client that is gone is an error like any other.
  std::signal(SIGPIPE, SIG_IGN);
  auto* signals = new EndSignals;
  const absl::Status status = Run(flags, *signals);
  if (status.ok()) return kExitOk;
  spdlog::error("{}", std::string(status.message()));
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) { return hookline::Main(argc, argv); }
