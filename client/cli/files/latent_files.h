// Writes the examples of latents as files that delphi and SAEDashboard read.
#ifndef HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_
#define HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hookline/v1/dictionary_service.pb.h"

namespace hookline::cli {

struct LatentResult {
  std::string dataset;  // the dataset's name
  v1::TopActivationsStarted started;
  std::vector<v1::LatentActivations> latents;
  v1::TopActivationsSummary summary;
};

// Writes the files that delphi's LatentDataset reads: FOLDER/DICTIONARY/FIRST_LAST.safetensors and config.json. Each
// window of tokens is the context of an example; an example whose token lies in a stronger example's context is left
// out. `activations` are exact, but a latent's count covers only the windows. Errors name the path.
absl::Status WriteDelphi(const LatentResult& result, const std::string& folder);

// Writes the file that SAEDashboard's SaeVisData.load_json reads: the examples, the histogram and the statistics of
// each latent. The tables of logits and of correlated neurons are empty. Errors name the path.
absl::Status WriteSaeDashboard(const LatentResult& result, const std::string& path);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_FILES_LATENT_FILES_H_
