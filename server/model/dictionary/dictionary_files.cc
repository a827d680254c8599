#include "server/model/dictionary/dictionary_files.h"

#include <unistd.h>

#include <utility>

#include "server/base/status.h"

namespace hookline {

bool HoldsFiles(const std::string& folder, const char* config_file, const char* weights_file) {
  return access((folder + config_file).c_str(), F_OK) == 0 && access((folder + weights_file).c_str(), F_OK) == 0;
}

absl::StatusOr<std::shared_ptr<const Dictionary>> MakeDictionary(DictionaryInfo info, const DictionaryConfig& config,
                                                                 DictionaryWeights weights, WeightTaker& take,
                                                                 const std::string& computation) {
  RETURN_IF_ERROR(take.Finish());
  ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(computation));
  return std::make_shared<const Dictionary>(std::move(info), config, std::move(weights));
}

}  // namespace hookline
