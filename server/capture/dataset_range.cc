#include "server/capture/dataset_range.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/mix.h"
#include "server/base/shuffled_order.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// No training makes this many passes over a dataset. The limit also keeps counts of sequences far below what resume
// tokens hold, 2^60: a file has fewer than 2^40 sequences.
constexpr int64_t kMaxEpochs = 1'000'000;

absl::StatusOr<const Dataset*> FindDataset(const DatasetSource& source, absl::string_view field, const ModelInfo& info,
                                           const std::vector<const Dataset*>& datasets) {
  if (source.name.empty()) return InvalidField(absl::StrCat(field, ".name"), "is empty; name a dataset");
  const auto found = std::find_if(datasets.begin(), datasets.end(),
                                  [&](const Dataset* dataset) { return dataset->name() == source.name; });
  if (found == datasets.end()) {
    std::vector<std::string> names;
    for (const Dataset* dataset : datasets) names.push_back(dataset->name());
    return absl::NotFoundError(absl::StrCat(field, ".name: no dataset \"", source.name, "\"; this server has ",
                                            names.empty() ? "none" : absl::StrJoin(names, ", ")));
  }
  if ((*found)->largest_token_id() >= info.vocabulary_size) {
    return InvalidField(absl::StrCat(field, ".name"),
                        absl::StrCat("dataset \"", source.name, "\" holds token id ", (*found)->largest_token_id(),
                                     ", but ids of model \"", info.name, "\" are below ", info.vocabulary_size));
  }
  return *found;
}

}  // namespace

absl::StatusOr<DatasetRange> ResolveDatasetRange(const DatasetSource& source, absl::string_view field,
                                                 const ModelInfo& info, const CaptureLimits& limits,
                                                 const std::vector<const Dataset*>& datasets) {
  DatasetRange range;
  ASSIGN_OR_RETURN(range.dataset, FindDataset(source, field, info, datasets));
  auto cut = range.dataset->CutInto(source.sequence_length);
  if (!cut.ok()) {
    return FieldOf(cut.status()).empty()
               ? cut.status()
               : InvalidField(absl::StrCat(field, ".", FieldOf(cut.status())),
                              absl::StripPrefix(cut.status().message(), absl::StrCat(FieldOf(cut.status()), ": ")));
  }
  if (source.prepend_token_id.has_value() && *source.prepend_token_id >= info.vocabulary_size) {
    return InvalidField(absl::StrCat(field, ".prepend_token_id"),
                        absl::StrCat("token id ", *source.prepend_token_id, " is not below the vocabulary's size ",
                                     info.vocabulary_size));
  }
  const int64_t length = cut->sequence_length + (source.prepend_token_id.has_value() ? 1 : 0);
  if (length > limits.max_sequence_length) {
    return InvalidField(absl::StrCat(field, ".sequence_length"),
                        absl::StrCat("sequences of ", length, " tokens (a prepended one included) are longer than the ",
                                     limits.max_sequence_length, " that are allowed"));
  }
  if (source.first_sequence < 0 || source.first_sequence >= cut->sequence_count) {
    return InvalidField(absl::StrCat(field, ".first_sequence"),
                        absl::StrCat(source.first_sequence, " is not among the dataset's ", cut->sequence_count,
                                     " sequences of ", cut->sequence_length, " tokens"));
  }
  if (source.sequence_count < 0) {
    return InvalidField(absl::StrCat(field, ".sequence_count"), absl::StrCat(source.sequence_count, " is negative"));
  }
  range.sequence_length = cut->sequence_length;
  range.first_sequence = source.first_sequence;
  const int64_t rest = cut->sequence_count - source.first_sequence;
  range.sequence_count = source.sequence_count == 0 ? rest : std::min(rest, source.sequence_count);
  range.prepend_token_id = source.prepend_token_id;
  if (source.epochs < 1 || source.epochs > kMaxEpochs) {
    return InvalidField(absl::StrCat(field, ".epochs"),
                        absl::StrCat(source.epochs, " is not from 1 to ", kMaxEpochs, "; 0 means 1"));
  }
  range.epochs = source.epochs;
  range.shuffle_seed = source.shuffle_seed;
  const int64_t all = range.sequence_count * range.epochs;
  if (source.skip_sequences < 0 || source.skip_sequences >= all) {
    return InvalidField(absl::StrCat(field, ".skip_sequences"),
                        absl::StrCat(source.skip_sequences, " is not below the ", all, " sequences of all epochs"));
  }
  range.skip_sequences = source.skip_sequences;
  return range;
}

int64_t DatasetRange::SequenceAt(int64_t count) const {
  const int64_t epoch = (count - first_sequence) / sequence_count;
  const int64_t place = (count - first_sequence) % sequence_count;
  if (!shuffle_seed.has_value()) return first_sequence + place;
  return first_sequence + ShuffledOrder(sequence_count, Mix(Mix(*shuffle_seed) + static_cast<uint64_t>(epoch)))[place];
}

absl::Status DatasetRange::Read(int64_t sequence, int64_t vocabulary_size, std::vector<uint32_t>* ids) const {
  const size_t prepended = prepend_token_id.has_value() ? 1 : 0;
  ids->resize(prepended + sequence_length);
  if (prepended != 0) (*ids)[0] = *prepend_token_id;
  return dataset->ReadSequence(sequence, vocabulary_size, absl::MakeSpan(*ids).subspan(prepended));
}

}  // namespace hookline
