#include "server/model/model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {
namespace {

int64_t WidthOf(DictionaryPoint point, const DictionaryInfo& info) {
  switch (point) {
    case DictionaryPoint::kInput:
      return info.width;
    case DictionaryPoint::kPreActivations:
    case DictionaryPoint::kActivations:
      return info.latents;
    case DictionaryPoint::kReconstruction:
    case DictionaryPoint::kError:
      return info.output_width;
  }
  return 0;
}

}  // namespace

absl::Status Model::Evaluate(const at::Tensor& /*token_ids*/, absl::Span<const int64_t> /*lengths*/,
                             PassEditor& /*editor*/) {
  return absl::FailedPreconditionError(
      absl::StrCat("model \"", info_.name, "\" is not a decoder: nothing can be replaced in its forward pass"));
}

absl::Status Model::Attach(std::shared_ptr<const Dictionary> dictionary, int hook_point, int output_point) {
  const DictionaryInfo& info = dictionary->info();
  const HookPoint at = hook_points_[hook_point], output = hook_points_[output_point];
  const auto refused = [&](absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat("dictionary \"", info.name, "\": ", why));
  };
  const int head = info.head;
  if (head >= 0 && head >= at.heads) {
    return refused(absl::StrCat("it encodes head ", head, " (hook_head_index), but ", at.name, " of model \"",
                                info_.name, "\" has ", at.heads, " heads"));
  }
  if (info.width != (head < 0 ? at.width : at.width / at.heads)) {
    return refused(absl::StrCat("it encodes rows of ", info.width, " values, but ", head < 0 ? "" : "a head of ",
                                at.name, " of model \"", info_.name, "\" has ",
                                head < 0 ? at.width : at.width / at.heads));
  }
  if (output_point < hook_point) {
    return refused(absl::StrCat("its output ", output.name, " is computed before its input ", at.name));
  }
  if (output_point != hook_point && info.output_width != output.width) {
    return refused(absl::StrCat("it decodes rows of ", info.output_width, " values, but ", output.name, " of model \"",
                                info_.name, "\" has ", output.width));
  }
  std::string place = head < 0 ? at.name : absl::StrCat("head ", head, " of ", at.name);
  if (output_point != hook_point) absl::StrAppend(&place, ", for ", output.name);
  bool is_alone = true;
  for (const AttachedDictionary& other : dictionaries_) {
    if (other.info.name == info.name) return refused("another dictionary has that name");
    is_alone &= other.hook_point != hook_point;
  }
  AttachedDictionary attached{info, std::move(dictionary), hook_point, output_point, hook_points_.size()};
  for (int i = 0; i < kDictionaryPoints; ++i) {
    const auto point = static_cast<DictionaryPoint>(i);
    HookPoint made;
    made.name = absl::StrCat(at.name, ".", info.name, ".", NameOf(point));
    made.width = WidthOf(point, info);
    made.layer = point == DictionaryPoint::kError ? output.layer : at.layer;
    made.description = absl::StrCat("Dictionary ", info.name, " at ", place, ": ", DescriptionOf(point));
    made.observation = true;
    made.fingerprint = info.fingerprint;
    if (hook_points_.Find(made.name) >= 0) return refused(absl::StrCat(made.name, " is already a hook point"));
    const int index = hook_points_.Add(std::move(made));
    // A dictionary that is alone at its hook point also has SAELens's own names.
    const std::string short_name = absl::StrCat(at.name, ".", NameOf(point));
    if (is_alone) {
      hook_points_.Alias(short_name, index);
    } else {
      hook_points_.RemoveAlias(short_name);
    }
  }
  dictionaries_.push_back(std::move(attached));
  return absl::OkStatus();
}

}  // namespace hookline
