#include "server/model/families/weight_names.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/escape.h"

namespace hookline {
namespace {

// A form of names: a weight that every model of a kind has, the prefix of its name in the file, and the wanted prefix.
struct Form {
  const char* weight;
  const char* found;
  const char* wanted;
};
constexpr Form kForms[] = {
    {"embed_tokens.weight", "", "model."},
    {"embed_tokens.weight", "language_model.", "model."},
    {"embed_tokens.weight", "language_model.model.", "model."},
    {"embed_tokens.weight", "model.language_model.", "model."},
    {"embed_tokens.weight", "decoder.", "model.decoder."},
    {"embed_in.weight", "", "gpt_neox."},
};
// The heads are not part of the model below them.
constexpr absl::string_view kHeads[] = {"lm_head.", "embed_out.", "score.", "v_head.", "classifier.", "qa_outputs."};

// The most names of omitted weights in a text.
constexpr size_t kMaxNamed = 8;

bool IsOfHead(absl::string_view name) {
  return std::any_of(std::begin(kHeads), std::end(kHeads),
                     [&](absl::string_view head) { return absl::StartsWith(name, head); });
}

std::string Renamed(absl::string_view name, const Form& form) {
  absl::string_view head = name;
  absl::ConsumePrefix(&head, "language_model.");
  if (IsOfHead(head)) return std::string(head);
  if (!absl::ConsumePrefix(&name, form.found)) return std::string(name);
  return absl::StrCat(form.wanted, name);
}

}  // namespace

void UnifyNames(StateDict* weights) {
  const auto* const form = std::find_if(std::begin(kForms), std::end(kForms), [&](const Form& one) {
    return weights->tensors.contains(absl::StrCat(one.found, one.weight));
  });
  if (form == std::end(kForms)) return;
  decltype(weights->tensors) renamed;
  for (auto& [name, tensor] : weights->tensors) {
    // If two names become the same, both stay, and the one that is not taken becomes an error with its name.
    if (!renamed.emplace(Renamed(name, *form), tensor).second) renamed.emplace(name, tensor);
  }
  weights->tensors = std::move(renamed);
}

std::string IgnoreOtherHeads(WeightTaker& take) {
  const std::vector<std::string> names = take.IgnoreRest([](const std::string& name, const StoredTensor& tensor) {
    for (absl::string_view head : {"score.", "v_head.", "classifier.", "qa_outputs."}) {
      if (absl::StartsWith(name, head)) return true;
    }
    return at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true);
  });
  if (names.empty()) return "";
  const size_t named = std::min(names.size(), kMaxNamed);
  std::string text =
      absl::StrCat("not read: ", absl::StrJoin(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(named), ", ",
                                               [](std::string* out, const std::string& name) {
                                                 absl::StrAppend(out, Escaped(name.substr(0, 120)));
                                               }));
  if (names.size() > named) absl::StrAppend(&text, " and ", names.size() - named, " more");
  return text;
}

}  // namespace hookline
