// Writes the examples of latents as files that delphi and SAEDashboard read.
#ifndef HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_
#define HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hookline/v1/dictionary_service.pb.h"

namespace hookline::cli {

struct LatentResult {
  std::string dataset;  // its name
  v1::TopActivationsStarted started;
  std::vector<v1::LatentActivations> latents;
  v1::TopActivationsSummary summary;
};

// Writes what delphi's LatentDataset reads: FOLDER/DICTIONARY/FIRST_LAST.safetensors and config.json. Each window of
// tokens is an example's context; of examples that overlap, the strongest stands for all. `activations` are exact
// there, but a latent's count is that of its examples. Errors name the path.
absl::Status WriteDelphi(const LatentResult& result, const std::string& folder);

// Writes what SAEDashboard's SaeVisData.load_json reads: the examples, the histogram and the statistics of each latent.
// Tables of logits and of correlated neurons are empty. Errors name the path.
absl::Status WriteSaeDashboard(const LatentResult& result, const std::string& path);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_
