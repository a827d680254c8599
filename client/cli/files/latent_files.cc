#include "client/cli/files/latent_files.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/files/scratch_file.h"
#include "server/base/status.h"
#include "server/formats/safetensors.h"

namespace hookline::cli {
namespace {

using Json = nlohmann::json;

constexpr int kHistogramBins = 50;  // SAEDashboard's default
// SAEDashboard's ASYMMETRIC_RANGES_AND_PRECISIONS: quantiles from `begin` to below `end`, 10^-digits apart.
struct QuantileRange {
  double begin, end;
  int digits;
};
constexpr QuantileRange kQuantileRanges[] = {{0.0, 0.95, 3}, {0.95, 0.99, 4}, {0.99, 1.0, 5}};

double Rounded(double value, int digits) {
  const double scale = std::pow(10, digits);
  return std::nearbyint(value * scale) / scale;
}

absl::Status Write(const std::string& directory, const std::string& name, absl::string_view head,
                   const std::vector<std::pair<const void*, int64_t>>& pieces) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFile> file, ScratchFile::Create(TemporaryPath(directory, name)));
  RETURN_IF_ERROR(file->Append(head.data(), static_cast<int64_t>(head.size())));
  for (const auto& [data, bytes] : pieces) RETURN_IF_ERROR(file->Append(data, bytes));
  return file->Keep(absl::StrCat(directory, "/", name));
}

// Returns the examples whose token does not lie in a stronger example's context.
std::vector<const v1::LatentExample*> SeparateExamples(const v1::LatentActivations& latent) {
  std::vector<const v1::LatentExample*> kept;
  for (const v1::LatentExample& example : latent.examples()) {
    const bool covered = std::any_of(kept.begin(), kept.end(), [&](const v1::LatentExample* other) {
      return other->sequence() == example.sequence() && example.position() >= other->first_position() &&
             example.position() < other->first_position() + other->token_ids_size();
    });
    if (!covered) kept.push_back(&example);
  }
  return kept;
}

Json Histogram(const v1::LatentActivations& latent, int64_t tokens) {
  if (latent.firings() == 0) return Json::object();
  const double least = latent.values(0), most = latent.values(latent.values_size() - 1);
  const double bin = (most - least) / kHistogramBins;
  std::vector<int64_t> heights(kHistogramBins);
  for (int i = 0; i < latent.values_size(); ++i) {
    const int at = bin > 0 ? static_cast<int>((latent.values(i) - least) / bin) : kHistogramBins / 2;
    heights[static_cast<size_t>(std::min(at, kHistogramBins - 1))] += latent.counts(i);
  }
  std::vector<double> centres, ticks = {0};
  for (int i = 0; i < kHistogramBins; ++i) centres.push_back(Rounded(least + bin * i + bin / 2, 5));
  const double tick = 0.1 * std::floor(1e-4 + most / 0.3) + 1e-6;
  for (int i = 1; i <= 3; ++i) ticks.push_back(Rounded(tick * i, 1));
  const double density =
      100 * static_cast<double>(latent.firings()) / static_cast<double>(std::max<int64_t>(1, tokens));
  return {{"bar_heights", heights},
          {"bar_values", centres},
          {"tick_vals", ticks},
          {"title", absl::StrFormat("ACTIVATIONS<br>DENSITY = %.3f%%", density)}};
}

Json Sequences(const v1::LatentActivations& latent) {
  Json sequences = Json::array();
  for (const v1::LatentExample& example : latent.examples()) {
    const std::vector<double> none(static_cast<size_t>(example.token_ids_size()));
    sequences.push_back({{"original_index", example.sequence()},
                         {"qualifying_token_index", example.position()},
                         {"token_ids", std::vector<uint32_t>(example.token_ids().begin(), example.token_ids().end())},
                         {"feat_acts", std::vector<float>(example.activations().begin(), example.activations().end())},
                         {"loss_contribution", none},
                         {"token_logits", none},
                         {"top_token_ids", Json::array()},
                         {"top_logits", Json::array()},
                         {"bottom_token_ids", Json::array()},
                         {"bottom_logits", Json::array()}});
  }
  const double most = latent.examples_size() == 0 ? 0 : latent.examples(0).activation();
  const Json group = {{"title", absl::StrFormat("TOP ACTIVATIONS<br>MAX = %.3f", most)}, {"seq_data", sequences}};
  return {{"seq_group_data", Json::array({group})}};
}

std::vector<double> QuantileShares() {
  std::vector<double> shares;
  for (const QuantileRange& range : kQuantileRanges) {
    const double step = std::pow(10, -range.digits);
    const auto count = static_cast<int>(std::lround((range.end - range.begin) / step));
    for (int i = 0; i < count; ++i) shares.push_back(range.begin + i * step);
  }
  return shares;
}

// Returns the latent's quantiles over all tokens, interpolated as torch.quantile does, without the leading zeros.
std::vector<double> QuantileData(const v1::LatentActivations& latent, int64_t tokens) {
  std::vector<double> quantiles;
  const int64_t zeros = tokens - latent.firings();
  int value = -1;       // index into latent.values(); -1: the tokens at which the latent is 0
  int64_t end = zeros;  // the rank after the last token with this value
  const auto at = [&](int64_t rank) {
    while (rank >= end && value + 1 < latent.values_size()) end += latent.counts(++value);
    return value < 0 ? 0.0 : static_cast<double>(latent.values(value));
  };
  for (double share : QuantileShares()) {
    const double rank = share * static_cast<double>(tokens - 1);
    const auto below = static_cast<int64_t>(rank);
    const double low = at(below);
    const int kept_value = value;
    const int64_t kept_end = end;
    const double high = at(std::min(below + 1, tokens - 1));
    value = kept_value;
    end = kept_end;
    const double quantile = Rounded(low + (high - low) * (rank - static_cast<double>(below)), 6);
    if (quantiles.empty() && std::abs(quantile) <= 1e-6) continue;
    quantiles.push_back(quantile);
  }
  return quantiles;
}

Json Statistics(const LatentResult& result) {
  const int64_t tokens = result.summary.tokens() - result.summary.ignored_tokens();
  Json most = Json::array(), share = Json::array(), data = Json::array(), ranges = Json::array();
  for (const v1::LatentActivations& latent : result.latents) {
    most.push_back(latent.values_size() == 0 ? 0.0 : latent.values(latent.values_size() - 1));
    share.push_back(tokens == 0 ? 0.0 : static_cast<double>(latent.firings()) / static_cast<double>(tokens));
    data.push_back(tokens == 0 ? std::vector<double>() : QuantileData(latent, tokens));
  }
  std::vector<double> quantiles;
  for (double one : QuantileShares()) quantiles.push_back(Rounded(one, 6));
  quantiles.push_back(1);
  for (const QuantileRange& range : kQuantileRanges) {
    ranges.push_back(Json::array({Json::array({range.begin, range.end}), range.digits}));
  }
  return {
      {"max", most},           {"frac_nonzero", share},  {"skew", Json::array()},          {"kurtosis", Json::array()},
      {"quantile_data", data}, {"quantiles", quantiles}, {"ranges_and_precisions", ranges}};
}

}  // namespace

absl::Status WriteDelphi(const LatentResult& result, const std::string& folder) {
  const std::string directory = absl::StrCat(folder, "/", result.started.dictionary().name());
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::FailedPreconditionError(absl::StrCat(directory, ": ", error.message()));
  int32_t first = result.latents.front().latent(), last = first;
  for (const v1::LatentActivations& latent : result.latents) {
    first = std::min(first, latent.latent());
    last = std::max(last, latent.latent());
  }
  std::vector<int64_t> locations, tokens;
  std::vector<float> activations;
  int64_t windows = 0, context = 0;
  for (const v1::LatentActivations& latent : result.latents) {
    for (const v1::LatentExample* example : SeparateExamples(latent)) {
      context = example->token_ids_size();
      tokens.insert(tokens.end(), example->token_ids().begin(), example->token_ids().end());
      for (int t = 0; t < example->activations_size(); ++t) {
        if (!(example->activations(t) > 0)) continue;
        locations.insert(locations.end(), {windows, t, latent.latent() - first});
        activations.push_back(example->activations(t));
      }
      ++windows;
    }
  }
  const auto values = static_cast<int64_t>(activations.size());
  const int64_t location_bytes = values * 3 * int64_t{sizeof(int64_t)};
  const int64_t token_bytes = windows * context * int64_t{sizeof(int64_t)};
  const int64_t activation_bytes = values * int64_t{sizeof(float)};
  SafetensorsHeader header({});
  header.Add("locations", "I64", {values, 3}, 0, location_bytes);
  header.Add("tokens", "I64", {windows, context}, location_bytes, location_bytes + token_bytes);
  header.Add("activations", "F32", {values}, location_bytes + token_bytes,
             location_bytes + token_bytes + activation_bytes);
  RETURN_IF_ERROR(Write(
      directory, absl::StrCat(first, "_", last, ".safetensors"), header.Encode(),
      {{locations.data(), location_bytes}, {tokens.data(), token_bytes}, {activations.data(), activation_bytes}}));
  const Json config = {
      {"dataset_repo", result.dataset}, {"dataset_split", ""}, {"dataset_name", ""},
      {"dataset_column", ""},           {"batch_size", 1},     {"cache_ctx_len", context},
      {"n_tokens", windows * context},  {"n_splits", 1},       {"model_name", result.started.dictionary().model()}};
  return Write(directory, "config.json", config.dump(4) + "\n", {});
}

absl::Status WriteSaeDashboard(const LatentResult& result, const std::string& path) {
  const int64_t tokens = result.summary.tokens() - result.summary.ignored_tokens();
  Json features = Json::object();
  for (const v1::LatentActivations& latent : result.latents) {
    features[absl::StrCat(latent.latent())] = {{"feature_tables_data", Json::object()},
                                               {"acts_histogram_data", Histogram(latent, tokens)},
                                               {"logits_table_data", Json::object()},
                                               {"logits_histogram_data", Json::object()},
                                               {"sequence_data", Sequences(latent)},
                                               {"prompt_data", Json::object()},
                                               {"dfa_data", Json::object()},
                                               {"decoder_weights_data", nullptr}};
  }
  const Json whole = {{"feature_data_dict", features}, {"feature_stats", Statistics(result)}};
  const std::filesystem::path place(path);
  const std::string directory = place.has_parent_path() ? place.parent_path().string() : ".";
  return Write(directory, place.filename().string(), whole.dump() + "\n", {});
}

}  // namespace hookline::cli
