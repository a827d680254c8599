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

// Returns notes on the budgets that the server's cap clips.
std::vector<std::string> NotesOfGrant(const v1::CaptureStarted& started);

// Returns notes on hook points without a budget that ended at the server's cap, on values that became infinite, and on
// first tokens. `tokens` is as for NoteOfFirstTokens.
std::vector<std::string> NotesOfEnd(const v1::CaptureRequest& request, const TokenSource* tokens,
                                    const CaptureResult& result);

// Returns notes on hook points of a recording that ended at the server's cap, not at the budget or the source's end.
std::vector<std::string> NotesOfRecording(const v1::CaptureRequest& request, const v1::Recording& recording);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_NOTES_H_
