// Fields of config.json that mean the same in every family.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_

#include <string>

#include "server/model/families/config_reader.h"

namespace hookline {

// Makes fields an error of `config` that ask for what no family computes: attention that looks ahead, cross-attention,
// sizes layer by layer (but in Gemma 4, which reads them). `warning` is set where the file names code of its own, which
// is not run.
void CheckFieldsOfAnyFamily(const ConfigReader& config, std::string* warning);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_
