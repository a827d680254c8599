#include "server/capture/top_activations_plan.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/hash.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr int64_t kDefaultTop = 20;
constexpr int64_t kMaxTop = 10000;
constexpr int64_t kDefaultContext = 32;  // that of delphi's examples
constexpr int64_t kMaxContext = 1024;
// With kMaxValues, this leaves each latent a distinct value for each of binary32's
// exponents (LatentLimits::max_values).
constexpr int64_t kMaxLatents = 512;
// All examples' contexts together hold this many tokens, and all latents' distributions this many distinct values, so
// that every checkpoint fits into one message of 4 MiB.
constexpr int64_t kMaxContextTokens = int64_t{1} << 18;
constexpr int64_t kMaxValues = int64_t{1} << 17;
// An example takes this many tokens' memory besides its context.
constexpr int64_t kTokensOfExample = 8;
// A distinct value takes the memory of this many tokens, as --max-held-tokens counts them: a node of a hash table.
constexpr int64_t kTokensOfValue = 3;
constexpr size_t kMaxQuantiles = 100;
const double kDefaultQuantiles[] = {0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99};

absl::Status TakeLatents(const TopActivationsRequest& request, int64_t of_dictionary, TopActivationsPlan* plan) {
  if (request.latents.empty() || static_cast<int64_t>(request.latents.size()) > kMaxLatents) {
    return InvalidField("latents", absl::StrCat("has ", request.latents.size(), "; give 1 to ", kMaxLatents,
                                                ", and the rest in another request"));
  }
  std::set<int64_t> seen;
  for (size_t i = 0; i < request.latents.size(); ++i) {
    const int64_t latent = request.latents[i];
    const std::string field = absl::StrCat("latents[", i, "]");
    if (latent < 0 || latent >= of_dictionary) {
      return InvalidField(field, absl::StrCat(latent, " is not a latent, 0 to ", of_dictionary - 1));
    }
    if (!seen.insert(latent).second) return InvalidField(field, absl::StrCat(latent, " is given twice"));
  }
  plan->latents = request.latents;
  return absl::OkStatus();
}

absl::Status TakeLimits(const TopActivationsRequest& request, TopActivationsPlan* plan) {
  if (request.top < 0 || request.top > kMaxTop) {
    return InvalidField("top", absl::StrCat(request.top, " is not from 1 to ", kMaxTop, " (0: ", kDefaultTop, ")"));
  }
  if (request.context < 0 || request.context > kMaxContext) {
    return InvalidField(
        "context", absl::StrCat(request.context, " is not from 1 to ", kMaxContext, " (0: ", kDefaultContext, ")"));
  }
  const auto latents = static_cast<int64_t>(plan->latents.size());
  plan->limits.top = request.top == 0 ? kDefaultTop : request.top;
  plan->limits.context = request.context == 0 ? kDefaultContext : request.context;
  plan->limits.max_values = kMaxValues / latents;
  const int64_t tokens = latents * plan->limits.top * (plan->limits.context + kTokensOfExample);
  if (tokens > kMaxContextTokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("latents: ", latents, " latents with ", plan->limits.top, " examples of ", plan->limits.context,
                     " and ", kTokensOfExample, " more tokens each take ", tokens, " tokens, more than ",
                     kMaxContextTokens, "; lower top or context, or ask for some of the latents in another request"));
  }
  return absl::OkStatus();
}

absl::Status TakeQuantiles(const TopActivationsRequest& request, TopActivationsPlan* plan) {
  if (request.quantiles.size() > kMaxQuantiles) {
    return InvalidField("quantiles", absl::StrCat(request.quantiles.size(), " are more than ", kMaxQuantiles));
  }
  for (size_t i = 0; i < request.quantiles.size(); ++i) {
    const double share = request.quantiles[i];
    if (!(share >= 0 && share <= 1)) {
      return InvalidField(absl::StrCat("quantiles[", i, "]"), absl::StrCat(share, " is not from 0 to 1"));
    }
  }
  plan->quantiles = request.quantiles;
  if (plan->quantiles.empty()) plan->quantiles.assign(std::begin(kDefaultQuantiles), std::end(kDefaultQuantiles));
  return absl::OkStatus();
}

// Returns a digest that is equal for requests with the same answer, apart from quantiles.
std::string DigestOf(const TopActivationsPlan& plan) {
  const DatasetRange& range = plan.dataset;
  Xxh3 hash;
  hash.UpdateWithLength(plan.model->info().fingerprint);
  hash.UpdateWithLength(plan.model->dictionaries()[static_cast<size_t>(plan.dictionary)].info.fingerprint);
  hash.UpdateWithLength(absl::StrCat(plan.model->dictionaries()[static_cast<size_t>(plan.dictionary)].hook_point));
  hash.UpdateWithLength(range.dataset->fingerprint());
  hash.UpdateWithLength(absl::StrCat(range.sequence_length, " ", range.begin(), " ", range.end(), " ",
                                     range.first_sequence, " ", range.prepend_token_id.value_or(0), " ",
                                     range.prepend_token_id.has_value(), " ", range.shuffle_seed.value_or(0), " ",
                                     range.shuffle_seed.has_value()));
  hash.UpdateWithLength(absl::StrCat(plan.limits.top, " ", plan.limits.context));
  hash.UpdateWithLength(absl::StrJoin(plan.latents, " "));
  hash.UpdateWithLength(absl::StrJoin(plan.ignored_ids, " "));
  return hash.hex();
}

absl::Status Resume(TopActivationsCheckpoint checkpoint, TopActivationsPlan* plan) {
  if (checkpoint.digest != plan->digest) {
    return absl::FailedPreconditionError(
        "resume.digest: the checkpoint belongs to another request, dictionary, model or dataset; begin without it");
  }
  if (checkpoint.sequences < 0 || checkpoint.sequences > plan->sequences()) {
    return InvalidField("resume.sequences",
                        absl::StrCat(checkpoint.sequences, " is not from 0 to ", plan->sequences()));
  }
  const int64_t tokens = checkpoint.sequences * plan->dataset.length();
  if (checkpoint.ignored_tokens < 0 || checkpoint.ignored_tokens > tokens) {
    return InvalidField("resume.ignored_tokens", absl::StrCat(checkpoint.ignored_tokens, " is not from 0 to ", tokens));
  }
  if (checkpoint.latents.size() != plan->latents.size()) {
    return InvalidField("resume.latents", absl::StrCat("has ", checkpoint.latents.size(), " entries for ",
                                                       plan->latents.size(), " latents"));
  }
  plan->records.clear();
  for (size_t i = 0; i < checkpoint.latents.size(); ++i) {
    const std::string field = absl::StrCat("resume.latents[", i, "]");
    if (checkpoint.latents[i].latent != plan->latents[i]) {
      return InvalidField(field + ".latent", absl::StrCat(checkpoint.latents[i].latent, " is not ", plan->latents[i]));
    }
    ASSIGN_OR_RETURN(LatentRecord record,
                     LatentRecord::Restore(plan->limits, std::move(checkpoint.latents[i].findings), field));
    plan->records.push_back(std::move(record));
  }
  plan->resumed_sequences = checkpoint.sequences;
  plan->resumed_ignored_tokens = checkpoint.ignored_tokens;
  return absl::OkStatus();
}

}  // namespace

int64_t TopActivationsPlan::SequencesOfPass(int64_t first_sequence) const {
  const int64_t fitting = std::max<int64_t>(1, max_batch_tokens / dataset.length());
  return std::min(fitting, sequences() - first_sequence);
}

int64_t TopActivationsPlan::HeldTokens() const {
  const auto count = static_cast<int64_t>(latents.size());
  return count * (limits.top * (limits.context + kTokensOfExample) + kTokensOfValue * limits.max_values);
}

absl::StatusOr<TopActivationsPlan> MakeTopActivationsPlan(TopActivationsRequest request, const Model& model,
                                                          int dictionary, const CaptureLimits& limits,
                                                          const std::vector<const Dataset*>& datasets) {
  TopActivationsPlan plan;
  plan.model = &model;
  plan.dictionary = dictionary;
  plan.max_batch_tokens = limits.max_batch_tokens;
  RETURN_IF_ERROR(TakeLatents(request, model.dictionaries()[static_cast<size_t>(dictionary)].info.latents, &plan));
  RETURN_IF_ERROR(TakeLimits(request, &plan));
  RETURN_IF_ERROR(TakeQuantiles(request, &plan));
  if (request.dataset.epochs > 1) {
    return InvalidField("dataset.epochs",
                        absl::StrCat("would count each token ", request.dataset.epochs, " times; leave it out"));
  }
  ASSIGN_OR_RETURN(plan.dataset, ResolveDatasetRange(request.dataset, "dataset", model.info(), limits, datasets));
  RETURN_IF_ERROR(CheckIgnoredIds("ignore_token_ids", request.ignore_token_ids.size()));
  plan.ignored_ids = std::move(request.ignore_token_ids);
  std::sort(plan.ignored_ids.begin(), plan.ignored_ids.end());
  if (request.checkpoint_sequences < 0) {
    return InvalidField("checkpoint_sequences",
                        absl::StrCat(request.checkpoint_sequences, " is negative; 0 sends no checkpoints"));
  }
  plan.checkpoint_sequences = request.checkpoint_sequences;
  plan.digest = DigestOf(plan);
  plan.records.assign(plan.latents.size(), LatentRecord(plan.limits));
  if (request.resume.has_value()) RETURN_IF_ERROR(Resume(*std::move(request.resume), &plan));
  return plan;
}

}  // namespace hookline
