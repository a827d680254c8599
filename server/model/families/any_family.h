// Checks the fields of config.json that mean the same in every family.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_

#include <string>

#include "server/model/families/config_reader.h"

namespace hookline {

// Adds an error to `config` for each field that asks for what no family computes: attention that looks ahead,
// cross-attention, and sizes by layer (except in Gemma 4, which reads them). Sets `warning` if the file names its own
// code, which is not run.
void CheckFieldsOfAnyFamily(const ConfigReader& config, std::string* warning);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_ANY_FAMILY_H_
