// Notes about captures that their reports leave out.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_NOTES_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_NOTES_H_

#include <string>
#include <vector>

#include "client/cli/capture_result.h"
#include "client/cli/files/token_source.h"
#include "hookline/v1/capture_service.pb.h"
#include "hookline/v1/recording_service.pb.h"

namespace hookline::cli {

// Says which budgets the server's cap clips.
std::vector<std::string> NotesOfGrant(const v1::CaptureStarted& started);

// Says that a cap nobody had asked for ended a hook point's rows, why values are infinite, and that sequences do not
// begin as the model expects it. `tokens`: as for NoteOfFirstTokens.
std::vector<std::string> NotesOfEnd(const v1::CaptureRequest& request, const TokenSource* tokens,
                                    const CaptureResult& result);

// Says that the server's cap, and not the budget or the source, ended a recording.
std::vector<std::string> NotesOfRecording(const v1::CaptureRequest& request, const v1::Recording& recording);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_NOTES_H_
