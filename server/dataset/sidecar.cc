#include "server/dataset/sidecar.h"

#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/input_file.h"
#include "server/base/json.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxSidecarBytes = int64_t{1} << 20;
// hookline.pack writes an object of objects. The rest is room for deeper options.
constexpr int kMaxSidecarDepth = 16;
// A message quotes this much of a text in a sidecar, which suffices to recognise it.
constexpr size_t kMaxTextBytes = 200;

std::string Text(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return "";
  return Escaped(found->get<std::string>().substr(0, kMaxTextBytes));
}

int64_t Count(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() ? -1 : JsonInteger(*found, 0, std::numeric_limits<int64_t>::max()).value_or(-1);
}

Sidecar Parse(absl::string_view text, const Dataset& dataset) {
  Sidecar sidecar;
  const absl::StatusOr<Json> parsed = ParseJsonObject(text, kMaxSidecarDepth);
  if (!parsed.ok()) {
    sidecar.warning = absl::StrCat("its sidecar ", parsed.status().message());
    return sidecar;
  }
  const Json& json = *parsed;
  if (Count(json, "format") != 1) {
    sidecar.warning = "its sidecar is not of hookline.pack's format 1";
    return sidecar;
  }
  if (const auto tokenizer = json.find("tokenizer"); tokenizer != json.end() && tokenizer->is_object()) {
    sidecar.tokenizer_fingerprint = Text(*tokenizer, "fingerprint");
  }
  sidecar.method = Text(json, "packing");
  sidecar.documents = Count(json, "documents");
  if (const auto options = json.find("options"); options != json.end() && options->is_object()) {
    for (const auto& [name, value] : options->items()) {
      const std::string text =
          value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', true, Json::error_handler_t::replace);
      sidecar.options[Escaped(name.substr(0, kMaxTextBytes))] = Escaped(text.substr(0, kMaxTextBytes));
    }
  }
  if (Count(json, "tokens") != dataset.tokens()) {
    sidecar.warning = absl::StrCat("its sidecar says ", Count(json, "tokens"), " tokens, but it has ", dataset.tokens(),
                                   ": they do not belong together");
  }
  return sidecar;
}

}  // namespace

void Sidecars::Read(const Dataset& dataset, absl::string_view source) {
  const std::string type = absl::StrCat(":", TokenDtypeName(dataset.dtype()));
  if (absl::EndsWith(source, type)) source.remove_suffix(type.size());
  const absl::StatusOr<std::string> text = ReadWholeFile(absl::StrCat(source, ".json"), kMaxSidecarBytes);
  if (absl::IsNotFound(text.status())) return;
  Sidecar sidecar;
  if (text.ok()) {
    sidecar = Parse(*text, dataset);
  } else {
    sidecar.warning = absl::StrCat("its sidecar cannot be read: ", text.status().message());
  }
  by_dataset_[dataset.name()] = std::move(sidecar);
}

const Sidecar* Sidecars::Get(absl::string_view dataset) const {
  const auto found = by_dataset_.find(dataset);
  return found == by_dataset_.end() ? nullptr : &found->second;
}

std::string Sidecars::TokenizerWarning(absl::string_view dataset, absl::string_view model,
                                       absl::string_view fingerprint) const {
  const Sidecar* sidecar = Get(dataset);
  if (sidecar == nullptr || sidecar->tokenizer_fingerprint.empty() || fingerprint.empty() ||
      sidecar->tokenizer_fingerprint == fingerprint) {
    return "";
  }
  return absl::StrCat("dataset ", dataset, " was packed with the tokenizer ", sidecar->tokenizer_fingerprint,
                      ", but that of model ", model, " is ", fingerprint);
}

}  // namespace hookline
