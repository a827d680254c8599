// The settings of the server program, from flags and environment variables.
#ifndef HOOKLINE_SERVER_FLAGS_H_
#define HOOKLINE_SERVER_FLAGS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/model/load.h"
#include "server/recording/catalog.h"
#include "server/service/server.h"

namespace hookline {

struct DatasetFlag {
  std::string name;
  std::string source;  // as Dataset::Open takes it
};

struct TokenizerFlag {
  std::string model;
  std::string path;  // as ModelTokenizers::Open takes it
};

struct ServerFlags {
  std::vector<ModelOptions> models;  // at least one unless there are recordings; no name given twice
  std::vector<DatasetFlag> datasets;
  std::vector<TokenizerFlag> tokenizers;  // no model twice
  int threads = 0;                        // of LibTorch on the CPU; 0: its own choice
  std::string recordings_dir;             // empty: none are kept
  std::string recordings_folder;          // in that directory, for this server; empty: the directory is not shared
  CatalogOptions recordings;
  EngineOptions engine;
  ServerOptions server;
  std::string port_file;       // empty: none
  std::string metrics_listen;  // empty: no metrics
  absl::Duration drain_timeout = absl::Seconds(60);
  std::string log_level = "info";
  std::string log_format = "text";  // or json
};

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

// Fills `flags`. Returns an exit code if the program must end with it, after everything has been printed: kExitOk after
// --help and --version, kExitUsage after a mistake.
std::optional<int> ParseFlags(int argc, const char* const* argv, ServerFlags* flags);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FLAGS_H_
