// The flags of a CaptureRequest, for every subcommand that makes one.
#ifndef HOOKLINE_CLIENT_CLI_COMMANDS_CAPTURE_REQUEST_H_
#define HOOKLINE_CLIENT_CLI_COMMANDS_CAPTURE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/cli/any_server.h"
#include "client/cli/files/token_source.h"
#include "client/cli/transfer.h"
#include "client/cpp/client.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::cli {

struct HookPointFlags {
  std::vector<std::string> hook_points;  // lists, as SplitHookPoints takes them
  std::optional<int64_t> max_activations;
  std::vector<std::string> max_activations_for;  // NAME=ROWS
};

struct CaptureRequestFlags : HookPointFlags {
  std::string model;
  std::string tokens;
  std::string token_format = "auto";
  std::vector<std::string> texts;
  std::string add_special_tokens = "default";
  std::string long_texts = "refuse";
  std::string dataset;
  std::string feed;
  int64_t sequence_length = 0;
  int64_t first_sequence = 0;
  int64_t sequence_count = 0;
  int64_t feed_members = 1;
  std::string feed_on_lag = "detach";
  std::optional<uint32_t> prepend_token;
  std::optional<uint64_t> shuffle_seed;
  int32_t epochs = 0;
  std::string dtype = "float32";
  int32_t top_k = 0;
  int32_t skip_first = 0;
  int32_t position_end = 0;
  int32_t position_stride = 1;
  std::vector<uint32_t> exclude_tokens;
  int32_t sample_rows = 0;
  uint64_t seed = 0;
  bool last_only = false;
  bool deterministic = false;
};

// Declares --model and the flags of the source of sequences. Returns the option --dataset.
CLI::Option* AddSourceOptions(CLI::App& command, CaptureRequestFlags& flags);

enum class Feeds { kOffered, kNotOffered };

// Declares all flags. `flags` must outlive the parsing.
void AddCaptureRequestOptions(CLI::App& command, CaptureRequestFlags& flags, Feeds feeds);

// Fills a request's fields with the hook points and their own budgets. INVALID_ARGUMENT names the flag.
absl::Status FillHookPoints(const HookPointFlags& flags, google::protobuf::RepeatedPtrField<std::string>* hook_points,
                            google::protobuf::Map<std::string, int64_t>* max_activations_by_hook_point);

// Throws a CLI::ParseError unless one source is given, with flags that fit it. A command's callback calls it.
void RequireSource(const CaptureRequestFlags& flags);

// Returns the request that the flags describe, without the tokens of a file. INVALID_ARGUMENT names the flag.
absl::StatusOr<v1::CaptureRequest> MakeCaptureRequest(const CaptureRequestFlags& flags);

// Opens the file of --tokens; returns null if that flag is not given. Asks the server for the model's limits if the
// format needs them, and to encode texts. `server` must outlive the source; errors name `address`.
absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokens(const CaptureRequestFlags& flags, AnyServer& server,
                                                        const std::string& address);

// Returns a transfer that calls CaptureStream, or Capture if `tokens` is null. All arguments must outlive the transfer.
Transfer CaptureTransfer(const v1::CaptureRequest& request, TokenSource* tokens, client::Client& client);

// Returns a note if the sequences do not all begin with the same token, such as BOS; none if they do, if that is
// unknown, or if the request leaves out the first positions. `tokens` is the file that was sent, or null.
std::optional<std::string> NoteOfFirstTokens(const v1::CaptureRequest& request, const TokenSource* tokens);

}  // namespace hookline::cli

#endif  // HOOKLINE_CLIENT_CLI_COMMANDS_CAPTURE_REQUEST_H_
