#include "server/model/model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {

absl::Status Model::Evaluate(const at::Tensor& /*token_ids*/, absl::Span<const int64_t> /*lengths*/,
                             PassEditor& /*editor*/) {
  return absl::FailedPreconditionError(
      absl::StrCat("model \"", info_.name, "\" is not a decoder: nothing can be replaced in its forward pass"));
}

absl::Status Model::Attach(std::shared_ptr<const Dictionary> dictionary, int hook_point) {
  const DictionaryInfo& info = dictionary->info();
  const HookPoint at = hook_points_[hook_point];
  const auto refused = [&](absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat("dictionary \"", info.name, "\": ", why));
  };
  if (info.width != at.width) {
    return refused(absl::StrCat("it encodes rows of ", info.width, " values, but ", at.name, " of model \"", info_.name,
                                "\" has ", at.width));
  }
  bool is_alone = true;
  for (const AttachedDictionary& other : dictionaries_) {
    if (other.info.name == info.name) return refused("there is another of that name");
    is_alone &= other.hook_point != hook_point;
  }
  AttachedDictionary attached{info, std::move(dictionary), hook_point, hook_points_.size()};
  for (int i = 0; i < kDictionaryPoints; ++i) {
    const auto point = static_cast<DictionaryPoint>(i);
    HookPoint made;
    made.name = absl::StrCat(at.name, ".", info.name, ".", NameOf(point));
    made.width =
        point == DictionaryPoint::kPreActivations || point == DictionaryPoint::kActivations ? info.latents : info.width;
    made.layer = at.layer;
    made.description = absl::StrCat("Dictionary ", info.name, " at ", at.name, ": ", DescriptionOf(point));
    made.observation = true;
    made.fingerprint = info.fingerprint;
    if (hook_points_.Find(made.name) >= 0) return refused(absl::StrCat(made.name, " is a hook point already"));
    const int index = hook_points_.Add(std::move(made));
    // A dictionary that stands alone has SAELens's own names too.
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
