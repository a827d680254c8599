// The flags of the server program: their names, what they set and their help.
#ifndef HOOKLINE_SERVER_FLAG_DECLARATIONS_H_
#define HOOKLINE_SERVER_FLAG_DECLARATIONS_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "server/flags.h"
#include "server/model/load.h"

namespace hookline {

// The values of the flags that are lists, as they were given.
struct FlagLists {
  std::vector<std::string> models, datasets, tokenizers, dictionaries;
};

// Declares every flag on `app`, with its environment variable HOOKLINE_<FLAG>. Parsing then writes to the other
// arguments, which must live as long as `app`. `model`: what all models have in common.
void DeclareFlags(CLI::App* app, ServerFlags* flags, FlagLists* lists, ModelOptions* model);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FLAG_DECLARATIONS_H_
