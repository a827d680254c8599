#include "server/service/text_requests.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/capture/text_source.h"
#include "server/engine/options.h"

namespace hookline {

absl::StatusOr<const Tokenizer*> TextRequests::FindOf(const Model& model) const {
  if (tokenizers_ == nullptr) {
    return WithField(absl::FailedPreconditionError("text: this server has no tokenizers"), "text");
  }
  return tokenizers_->Find(model.info().name);
}

absl::StatusOr<const Tokenizer*> TextRequests::Find(absl::string_view model) const {
  ASSIGN_OR_RETURN(const Model* found, engine_->FindModel(model));
  return FindOf(*found);
}

absl::StatusOr<TokenBatch> TextRequests::Encode(const std::string& model, const TextSource& source) const {
  ASSIGN_OR_RETURN(const Model* found, engine_->FindModel(model));
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, FindOf(*found));
  const CaptureLimits limits = LimitsFor(engine_->options(), found->info());
  return EncodeTexts(source, *tokenizer, found->info(), limits.max_sequence_length, limits.tokens);
}

const Sidecar* TextRequests::SidecarOf(absl::string_view dataset) const {
  return sidecars_ == nullptr ? nullptr : sidecars_->Get(dataset);
}

std::string TextRequests::DatasetWarning(absl::string_view dataset, const Model* model) const {
  const Sidecar* sidecar = SidecarOf(dataset);
  if (sidecar == nullptr) return "";
  if (!sidecar->warning.empty()) return absl::StrCat("dataset ", dataset, ": ", sidecar->warning);
  if (tokenizers_ == nullptr) return "";
  for (const Model* one : engine_->models()) {
    if (model != nullptr && one != model) continue;
    const Tokenizer* tokenizer = tokenizers_->Get(one->info().name);
    if (tokenizer == nullptr) continue;
    std::string warning = sidecars_->TokenizerWarning(dataset, one->info().name, tokenizer->fingerprint());
    if (!warning.empty()) return warning;
  }
  return "";
}

absl::Status TextRequests::Prepare(CaptureRequest* request) const {
  if (const auto* source = std::get_if<TextSource>(&request->source)) {
    ASSIGN_OR_RETURN(const Tokenizer* tokenizer, Find(request->model));
    ASSIGN_OR_RETURN(AddedTokens added, AddedTo(*source, *tokenizer));
    request->text.added = std::move(added.before);
    request->text.added.insert(request->text.added.end(), added.after.begin(), added.after.end());
    request->text.tokens_are_whole = true;
    ASSIGN_OR_RETURN(TokenBatch batch, Encode(request->model, *source));
    request->source = std::move(batch);
    if (request->encoding == Encoding::kValues) request->provenance = true;
  }
  const absl::StatusOr<const Model*> model = engine_->FindModel(request->model);
  if (!model.ok()) return absl::OkStatus();  // the engine says what is wrong with the name
  if (const auto* dataset = std::get_if<DatasetSource>(&request->source)) {
    request->text.warning = DatasetWarning(dataset->name, *model);
  } else if (const auto* feed = std::get_if<FeedSource>(&request->source)) {
    request->text.warning = DatasetWarning(feed->dataset.name, *model);
  }
  if (tokenizers_ == nullptr) return absl::OkStatus();
  const Tokenizer* tokenizer = tokenizers_->Get((*model)->info().name);
  if (tokenizer == nullptr) return absl::OkStatus();
  if (request->provenance) request->text.tokens = tokenizer->table();
  return absl::OkStatus();
}

}  // namespace hookline
