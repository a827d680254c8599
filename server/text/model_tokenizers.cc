#include "server/text/model_tokenizers.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status.h"

namespace hookline {
namespace {

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

absl::Status ModelTokenizers::Open(const std::string& model, const std::string& path) {
  std::string file = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    file.clear();
    for (const char* name : {"/tokenizer.json", "/tokenizer.pkl"}) {
      if (file.empty() && Exists(path + name)) file = path + name;
    }
    if (file.empty())
      return absl::NotFoundError(absl::StrCat(path, ": holds neither tokenizer.json nor tokenizer.pkl"));
  }
  ASSIGN_OR_RETURN(by_model_[model].tokenizer, OpenTokenizer(file));
  return absl::OkStatus();
}

void ModelTokenizers::Discover(const std::string& model, const std::string& checkpoint) {
  Entry& entry = by_model_[model];
  const std::vector<std::string> places = TokenizerPlaces(checkpoint);
  for (const std::string& place : places) {
    if (!Exists(place)) continue;
    absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = OpenTokenizer(place);
    if (tokenizer.ok()) {
      entry.tokenizer = *std::move(tokenizer);
    } else {
      entry.why_missing = absl::StrCat("its tokenizer cannot be used: ", tokenizer.status().message());
    }
    return;
  }
  entry.why_missing =
      absl::StrCat("looked for ", absl::StrJoin(places, ", "), "; give one with --tokenizer ", model, "=PATH");
}

const Tokenizer* ModelTokenizers::Get(absl::string_view model) const {
  const auto found = by_model_.find(model);
  return found == by_model_.end() ? nullptr : found->second.tokenizer.get();
}

std::string ModelTokenizers::WhyMissing(absl::string_view model) const {
  const auto found = by_model_.find(model);
  return found == by_model_.end() ? "none was looked for" : found->second.why_missing;
}

absl::StatusOr<const Tokenizer*> ModelTokenizers::Find(absl::string_view model) const {
  if (const Tokenizer* tokenizer = Get(model); tokenizer != nullptr) return tokenizer;
  return WithField(
      absl::FailedPreconditionError(absl::StrCat("text: model ", model, " has no tokenizer: ", WhyMissing(model))),
      "text");
}

std::optional<std::string> ModelTokenizers::Warning(absl::string_view model, int64_t vocabulary_size) const {
  const Tokenizer* tokenizer = Get(model);
  if (tokenizer == nullptr || vocabulary_size == 0 || tokenizer->table()->size() <= vocabulary_size)
    return std::nullopt;
  return absl::StrCat("its tokenizer gives ids below ", tokenizer->table()->size(),
                      ", but the model has only those below ", vocabulary_size,
                      "; texts that need the others are refused");
}

}  // namespace hookline
