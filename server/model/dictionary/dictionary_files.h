// Helpers for the formats of dictionaries, each a folder with a configuration and a file of weights.
#ifndef HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_FILES_H_
#define HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_FILES_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/model/dictionary/dictionary.h"
#include "server/model/load/weight_taker.h"

namespace hookline {

// Returns whether `folder` holds both files, whose names begin with a slash.
bool HoldsFiles(const std::string& folder, const char* config_file, const char* weights_file);

// Makes the dictionary of `weights`, which were taken by `take`, with their fingerprint. `computation`
// distinguishes dictionaries that compute something else with the same weights. Returns the error of the first
// weight that did not match.
absl::StatusOr<std::shared_ptr<const Dictionary>> MakeDictionary(DictionaryInfo info, const DictionaryConfig& config,
                                                                 DictionaryWeights weights, WeightTaker& take,
                                                                 const std::string& computation);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_DICTIONARY_DICTIONARY_FILES_H_
