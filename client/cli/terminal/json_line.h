// Prints protobuf messages for scripts.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_JSON_LINE_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_JSON_LINE_H_

#include "google/protobuf/message.h"

namespace hookline::cli {

// Prints `message` to standard output as one line of protobuf's JSON. Fields that hold 0 or an empty text are printed
// too, so that a script finds sequence 0 as it finds the others.
void PrintJsonLine(const google::protobuf::Message& message);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_JSON_LINE_H_
