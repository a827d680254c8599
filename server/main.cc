// hookline-server: flags -> models, engine, gRPC server; signals; exit codes.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/base/descriptor_limit.h"
#include "server/base/file_system.h"
#include "server/base/freed_memory.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/dataset/dataset.h"
#include "server/dataset/sidecar.h"
#include "server/engine/engine.h"
#include "server/flags.h"
#include "server/metrics/call_metrics.h"
#include "server/metrics/metrics.h"
#include "server/model/load.h"
#include "server/model/load/preflight.h"
#include "server/model/runtime.h"
#include "server/recorder/recorder.h"
#include "server/recording/catalog.h"
#include "server/service/event_log.h"
#include "server/service/library_logs.h"
#include "server/service/server.h"
#include "server/text/model_tokenizers.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// Time after --drain-timeout for clients to take their summaries, for recordings to be closed and for threads to end.
constexpr absl::Duration kEndGrace = absl::Seconds(10);

// Handles the signals that end the server or make it read files again, on a thread of its own, since a signal handler
// could do nothing but set a flag. Create it before any other thread, so that all threads inherit the mask.
class Signals {
 public:
  // If the process has not ended `longest_end` after the first signal, it is ended, whatever it waits for.
  explicit Signals(absl::Duration longest_end) : longest_end_(longest_end) {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    // The thread is detached, since it waits for ever; this object must live as long as the process.
    std::thread([this] { Run(); }).detach();
  }

  // From now on the first signal only ends Wait(). Before this call, while there is nothing to drain, it ends the
  // process. Until the first signal or StopReloading, SIGHUP calls `reload`, on a thread of its own.
  void Serve(std::function<void()> reload) {
    absl::MutexLock lock(&mutex_);
    reload_ = std::move(reload);
    serving_ = true;
  }
  // When this returns, `reload` is not running and will not be called any more.
  void StopReloading() {
    absl::MutexLock lock(&mutex_);
    reload_ = nullptr;
  }

  void Wait() { first_.WaitForNotification(); }

 private:
  void Run() {
    int signal = Next();
    while (signal == SIGHUP) {
      Reload();
      signal = Next();
    }
    if (!serving_) Die(signal);
    spdlog::info("shutting down gracefully; a second signal ends the server at once");
    first_.Notify();
    const timespec longest = absl::ToTimespec(longest_end_);
    do {
      signal = sigtimedwait(&set_, nullptr, &longest);
    } while (signal == SIGHUP || (signal < 0 && errno == EINTR));
    if (signal >= 0) Die(signal);
    spdlog::error("still running after {}; exiting now", absl::FormatDuration(longest_end_));
    std::_Exit(kExitFailure);
  }

  // There is nothing to read again before the server serves.
  void Reload() {
    absl::MutexLock lock(&mutex_);
    if (reload_) reload_();
  }

  int Next() {
    int signal = 0;
    while (sigwait(&set_, &signal) != 0) {
    }
    return signal;
  }

  // Ends the program as the signal would have ended it, so that its parent process sees why.
  [[noreturn]] void Die(int signal) {
    std::signal(signal, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
    std::raise(signal);
    std::_Exit(kExitFailure);
  }

  const absl::Duration longest_end_;
  sigset_t set_;
  std::atomic<bool> serving_{false};
  absl::Mutex mutex_;
  std::function<void()> reload_ ABSL_GUARDED_BY(mutex_);
  absl::Notification first_;
};

// Writes a file beside `path` and renames it, so that a reader that waits for `path` reads all of it.
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

void LogAddress(absl::string_view what, const std::string& address, int port) {
  spdlog::info("{} {} (port {})", std::string(what), address, port);
}

// The reason why the server ends by itself; OK if it does not.
class Lost {
 public:
  void Set(absl::Status status) {
    {
      absl::MutexLock lock(&mutex_);
      status_ = std::move(status);
    }
    kill(getpid(), SIGTERM);
  }
  absl::Status status() const {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// The devices of a model's replicas and stages, as --device spells them.
std::string DeviceText(const ServedModel& served) {
  std::string text;
  int replica = -1;
  for (const ServedModel::Executor& executor : served.executors) {
    if (executor.replica == replica) continue;
    replica = executor.replica;
    absl::StrAppend(&text, text.empty() ? "" : ",");
    for (size_t i = 0; i < executor.stages.size(); ++i) {
      absl::StrAppend(&text, i == 0 ? "" : "+", executor.stages[i].device);
    }
  }
  return text;
}

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const ServerFlags& flags, Lost& lost) {
  // Datasets are opened first, since checking them takes only seconds.
  std::vector<std::unique_ptr<const Dataset>> datasets;
  for (const DatasetFlag& flag : flags.datasets) {
    ASSIGN_OR_RETURN(std::unique_ptr<const Dataset> dataset, Dataset::Open(flag.name, flag.source));
    spdlog::info("dataset {}: {} tokens of {}", dataset->name(), dataset->tokens(),
                 std::string(TokenDtypeName(dataset->dtype())));
    datasets.push_back(std::move(dataset));
  }
  RETURN_IF_ERROR(CheckModels(flags.models));
  std::vector<ServedModel> models;
  for (ModelOptions options : flags.models) {
    options.max_sequence_length = flags.engine.max_sequence_length;
    if (const auto needs = CountWeights(options); needs.ok()) {
      for (const MemoryNeed& need : *needs) {
        spdlog::info("model {}: loading {} of weights to {}", need.model, MemoryText(need.bytes), need.device);
      }
    }
    const absl::Time start = SteadyNow();
    ASSIGN_OR_RETURN(ServedModel served, LoadServedModel(options));
    const Model* const model = &served.first();
    const ModelInfo& info = model->info();
    spdlog::info("model {}: {} {}, {}, {} parameters as {} on {} in {}; fingerprint {}", info.name, info.architecture,
                 info.variant, info.details, info.parameters, std::string(DtypeName(info.dtype)), DeviceText(served),
                 absl::FormatDuration(absl::Trunc(SteadyNow() - start, absl::Milliseconds(1))), info.fingerprint);
    if (!info.warning.empty()) spdlog::warn("model {}: {}", info.name, info.warning);
    for (const AttachedDictionary& one : model->dictionaries()) {
      spdlog::info("dictionary {}: {} of {}, {} latents at {}; fingerprint {}", one.info.name, one.info.architecture,
                   one.info.format, one.info.latents, model->hook_points()[one.hook_point].name, one.info.fingerprint);
    }
    models.push_back(std::move(served));
  }
  EngineOptions options = flags.engine;
  // Without models nothing takes slabs, and 8 are the fewest that an engine accepts.
  if (models.empty()) options.slab_count = std::min<int64_t>(options.slab_count, 8);
  return Engine::Create(options, std::move(models), std::move(datasets), [&lost](absl::Status status) {
    spdlog::error("{}", std::string(status.message()));
    lost.Set(std::move(status));
  });
}

// Opens each model's tokenizer: the one given by flag, which must work, or one found beside its checkpoint.
absl::StatusOr<ModelTokenizers> OpenTokenizers(const ServerFlags& flags, const Engine& engine) {
  ModelTokenizers tokenizers;
  const std::vector<const Model*> models = engine.models();  // in the order of their flags
  for (size_t i = 0; i < models.size(); ++i) {
    const ModelInfo& info = models[i]->info();
    const auto flag = std::find_if(flags.tokenizers.begin(), flags.tokenizers.end(),
                                   [&info](const TokenizerFlag& one) { return one.model == info.name; });
    if (flag != flags.tokenizers.end()) {
      const absl::Status status = tokenizers.Open(info.name, flag->path);
      if (!status.ok()) {
        return absl::Status(status.code(), absl::StrCat("--tokenizer ", info.name, ": ", status.message()));
      }
    } else {
      tokenizers.Discover(info.name, flags.models[i].path);
    }
    const Tokenizer* tokenizer = tokenizers.Get(info.name);
    if (tokenizer == nullptr) {
      spdlog::info("model {}: no tokenizer, so texts are refused: {}", info.name, tokenizers.WhyMissing(info.name));
      continue;
    }
    spdlog::info("model {}: {}; fingerprint {}", info.name, tokenizer->description(), tokenizer->fingerprint());
    const std::optional<std::string> warning = tokenizers.Warning(info.name, info.vocabulary_size);
    if (warning.has_value()) spdlog::warn("model {}: {}", info.name, *warning);
  }
  return tokenizers;
}

// Reads each dataset's sidecar, and logs what does not fit in it.
Sidecars ReadSidecars(const ServerFlags& flags, const Engine& engine, const ModelTokenizers& tokenizers) {
  Sidecars sidecars;
  const std::vector<const Dataset*> datasets = engine.datasets();  // in the order of their flags
  for (size_t i = 0; i < datasets.size(); ++i) {
    const std::string& name = datasets[i]->name();
    sidecars.Read(*datasets[i], flags.datasets[i].source);
    const Sidecar* sidecar = sidecars.Get(name);
    if (sidecar != nullptr && !sidecar->warning.empty()) spdlog::warn("dataset {}: {}", name, sidecar->warning);
    for (const Model* model : engine.models()) {
      const Tokenizer* tokenizer = tokenizers.Get(model->info().name);
      if (tokenizer == nullptr) continue;
      const std::string warning = sidecars.TokenizerWarning(name, model->info().name, tokenizer->fingerprint());
      if (!warning.empty()) spdlog::warn("{}", warning);
    }
  }
  return sidecars;
}

absl::StatusOr<std::unique_ptr<Catalog>> OpenCatalog(const ServerFlags& flags) {
  auto directory = OpenDirectory(flags.recordings_dir);
  if (!directory.ok()) {
    return absl::Status(directory.status().code(), absl::StrCat("--recordings-dir: ", directory.status().message(),
                                                                "; give an existing directory"));
  }
  auto opened = flags.recordings_folder.empty()
                    ? Catalog::Open(*std::move(directory), flags.recordings)
                    : Catalog::OpenShared(*std::move(directory), flags.recordings_folder, flags.recordings);
  if (FieldOf(opened.status()) == "name") {
    return absl::InvalidArgumentError(absl::StrCat("--recordings-folder: ", opened.status().message()));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, std::move(opened));
  for (const std::string& note : catalog->notes()) spdlog::warn("recordings: {}", note);
  spdlog::info("recordings in {}: {} bytes", flags.recordings_dir, catalog->used_bytes());
  return catalog;
}

void LogListening(const ServerOptions& options, const Server& server) {
  for (size_t i = 0; i < options.listen.size(); ++i) {
    LogAddress("listening on", options.listen[i], server.ports()[i]);
    if (server.is_loopback(i)) continue;
    if (options.auth_file.empty()) {
      spdlog::warn("{} is reachable from other machines, without authentication", options.listen[i]);
    } else if (!options.tls.is_on()) {
      spdlog::warn("{} is reachable from other machines, without TLS: tokens are refused there", options.listen[i]);
    }
  }
}

absl::Status Run(const ServerFlags& flags, Signals& signals) {
  RaiseDescriptorLimit();
  // This comes before the models, which take longer to load.
  RETURN_IF_ERROR(Server::Check(flags.server));
  const FreedMemoryReturner returner;
  RETURN_IF_ERROR(CheckRuntime());
  // On the CPU, replicas and the stages of a replica compute at the same time.
  const std::string& device = flags.models.empty() ? std::string() : flags.models[0].device;
  const auto is_separator = [](char one) { return one == ',' || one == '+'; };
  const auto executors = 1 + static_cast<int>(std::count_if(device.begin(), device.end(), is_separator));
  const RuntimeInfo runtime = ConfigureRuntime(flags.threads, absl::StartsWith(device, "cpu") ? executors : 1);
  spdlog::info("LibTorch {}, {} threads, matrix products by {}", runtime.libtorch, runtime.threads, runtime.blas);
  if (runtime.reference_blas) {
    spdlog::warn("this is the reference BLAS, tens of times slower than others; install libopenblas0-openmp");
  }
  // This comes before the models, which take longer to load.
  std::unique_ptr<Catalog> catalog;
  if (!flags.recordings_dir.empty()) {
    ASSIGN_OR_RETURN(catalog, OpenCatalog(flags));
  }
  Lost lost;
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, CreateEngine(flags, lost));
  ASSIGN_OR_RETURN(const ModelTokenizers tokenizers, OpenTokenizers(flags, *engine));
  const Sidecars sidecars = ReadSidecars(flags, *engine, tokenizers);
  CallMetrics call_metrics;
  std::unique_ptr<MetricsServer> metrics;
  if (!flags.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics, MetricsServer::Start(flags.metrics_listen, engine.get(), catalog.get(), &call_metrics));
    LogAddress("metrics at", flags.metrics_listen, metrics->port());
    if (!metrics->is_loopback()) {
      spdlog::warn("{} is reachable from other machines, without authentication", flags.metrics_listen);
    }
  }
  std::unique_ptr<Recorder> recorder;
  if (catalog != nullptr) recorder = std::make_unique<Recorder>(engine.get(), catalog.get());
  // Addresses are opened last, so that a client that is answered finds the weights on their device.
  ServerOptions options = flags.server;
  options.tokenizers = &tokenizers;
  options.sidecars = &sidecars;
  options.call_metrics = &call_metrics;
  options.on_lost = [&lost](absl::Status status) { lost.Set(std::move(status)); };
  ASSIGN_OR_RETURN(std::unique_ptr<Server> server, Server::Start(options, engine.get(), recorder.get()));
  signals.Serve([&server] { server->Reload(); });
  LogListening(flags.server, *server);
  if (!flags.port_file.empty()) RETURN_IF_ERROR(WritePortFile(flags.port_file, server->ports()[0]));
  signals.Wait();
  signals.StopReloading();
  absl::Status why = lost.status();
  // After a loss nothing is gained by going on: clients continue, by their resume tokens, with the server that takes
  // this one's place.
  server->Drain(why.ok() ? absl::Now() + flags.drain_timeout : absl::Now());
  spdlog::info("ended");
  return why;
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  ServerFlags flags;
  if (std::optional<int> exit_code = ParseFlags(argc, argv, &flags); exit_code.has_value()) return *exit_code;
  const bool is_json = flags.log_format == "json";
  spdlog::set_default_logger(is_json ? spdlog::stderr_logger_mt("hookline") : spdlog::stderr_color_mt("hookline"));
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  spdlog::set_formatter(is_json ? JsonLogFormatter() : LogFormatter());
  SetEventFormat(is_json ? LogFormat::kJson : LogFormat::kText);
  RouteLibraryLogs();
  // Writing to a client that is gone must be an error like any other, not a signal.
  std::signal(SIGPIPE, SIG_IGN);
  auto* signals = new Signals(flags.drain_timeout + kEndGrace);
  const absl::Status status = Run(flags, *signals);
  if (status.ok()) return kExitOk;
  spdlog::error("{}", std::string(status.message()));
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) { return hookline::Main(argc, argv); }
