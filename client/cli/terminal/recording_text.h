// Describes recordings, for people.
#ifndef HOOKLINE_CLIENT_CLI_TERMINAL_RECORDING_TEXT_H_
#define HOOKLINE_CLIENT_CLI_TERMINAL_RECORDING_TEXT_H_

#include <string>

#include "hookline/v1/recording_service.pb.h"

namespace hookline::cli {

// Returns `complete`, `running`, ...
std::string StateName(v1::RecordingState state);

// Returns lines with the state, the model and the source, and a table of the hook points.
std::string RecordingText(const v1::Recording& recording);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_TERMINAL_RECORDING_TEXT_H_
