#include "server/flag_declarations.h"

#include <cstdint>
#include <limits>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "server/base/address.h"

namespace hookline {
namespace {

// Checks addresses before anything is loaded. For an address without a port gRPC would take another one.
CLI::Validator AddressCheck() {
  return CLI::Validator(
      [](std::string& address) {
        const absl::Status status = address.empty() ? absl::OkStatus() : CheckListenAddress(address);
        return std::string(status.message());
      },
      "");
}

// Declares flags, each with its environment variable HOOKLINE_<FLAG>.
class Declare {
 public:
  explicit Declare(CLI::App* app) : app_(app) {}

  template <typename T>
  CLI::Option* Value(const std::string& flag, T& value, const std::string& help) {
    return Finish(app_->add_option(flag, value, help), flag)->capture_default_str();
  }

  CLI::Option* Bytes(const std::string& flag, int64_t& value, const std::string& help) {
    return Value(flag, value, help)->transform(CLI::AsSizeValue(/*kb_is_1000=*/false).description("BYTES"));
  }

  // Declares a flag that makes `value` false.
  CLI::Option* Without(const std::string& flag, bool& value, const std::string& help) {
    return Finish(app_->add_flag_function(
                      flag, [&value](int64_t count) { value = count <= 0; }, help),
                  flag);
  }

  CLI::Option* List(const std::string& flag, std::vector<std::string>& values, const std::string& help) {
    return Finish(app_->add_option(flag, values, help), flag)->delimiter(',')->allow_extra_args(false);
  }

  // Declares a flag whose value is absent unless it is given.
  CLI::Option* Quota(const std::string& flag, std::optional<int64_t>& value, const std::string& help) {
    return Finish(app_->add_option(flag, value, help), flag);
  }

  CLI::Option* Switch(const std::string& flag, bool& value, const std::string& help) {
    return Finish(app_->add_flag(flag, value, help), flag);
  }

  CLI::Option* Duration(const std::string& flag, absl::Duration& value, const std::string& help) {
    const auto parse = [&value, flag](const std::string& text) {
      absl::Duration duration;
      if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration()) {
        throw CLI::ValidationError(flag,
                                   absl::StrCat("`", text, "` is not a duration; use a value such as 2ms, 30s or 1m"));
      }
      value = duration;
    };
    return Finish(app_->add_option_function<std::string>(flag, parse, help), flag)
        ->type_name("DURATION")
        ->default_str(absl::FormatDuration(value));
  }

 private:
  CLI::Option* Finish(CLI::Option* option, const std::string& flag) {
    absl::string_view name = flag;
    absl::ConsumePrefix(&name, "--");
    return option->envname(absl::StrCat("HOOKLINE_", absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}}))));
  }

  CLI::App* const app_;
};

// Declares the limits of clients for which the auth file has none, and of each address if there is no such file.
void DeclareQuotas(Declare* declare, ClientQuotas* quotas) {
  const auto quota = [&](const char* flag, std::optional<int64_t>& value, const char* help) {
    declare->Quota(flag, value, help)
        ->check(CLI::NonNegativeNumber)
        ->group("Quotas of a client, unless --auth-file has others");
  };
  quota("--client-captures", quotas->captures,
        "Captures, running and waiting. Default: a quarter of --max-captures run; further ones wait");
  quota("--client-waiting", quotas->waiting, "Captures that wait. Default: a quarter of --max-captures");
  quota("--client-slabs", quotas->slabs, "Slabs. Default: a quarter of --slab-count; further captures wait");
  quota("--client-tokens-per-second", quotas->tokens_per_second, "Tokens a second, on average. Default: no limit");
  quota("--client-burst-tokens", quotas->burst_tokens, "Tokens at once after a pause. Default: ten seconds' worth");
  quota("--client-rows", quotas->rows, "Rows of each hook point in one capture. Default: no limit");
  quota("--client-recordings", quotas->recordings, "Recordings. Default: no limit");
  quota("--client-recording-bytes", quotas->recording_bytes, "Bytes of recordings. Default: no limit");
  quota("--client-feeds", quotas->feeds, "Captures that are members of feeds. Default: no limit");
}

constexpr char kLimits[] = "Limits";

// Declares the flags of models and of how they compute.
void DeclareModels(Declare declare, ServerFlags* flags, FlagLists* lists, ModelOptions* model) {
  declare
      .List("--model", lists->models,
            "[NAME=]PATH of a nanochat or Hugging Face checkpoint directory or a TorchScript file; without a name, the "
            "last part of the path. Repeat the flag for more models. A checkpoint is only read. A TorchScript file is "
            "a program that loading and every capture run: only operators that compute are accepted, but serve only "
            "files that you would run yourself")
      ->type_name("[NAME=]PATH");
  declare.Value("--step", model->step, "The step to load from a checkpoint directory; -1: the highest");
  declare.Value(
      "--device", model->device,
      "cpu, cuda, cuda:N, or auto: a replica on every GPU, or the CPU if there is none. A,B: a replica of each "
      "model on each device; A+B: its blocks are split over both, by the bytes of their weights; both: "
      "cuda:0+cuda:1,cuda:2+cuda:3. Replicas of a model serve one queue, and on the CPU share the weights");
  declare.Value(
      "--dtype", model->dtype,
      "Type in which models compute: float32, bfloat16, float16, or auto: float32 on the CPU, bfloat16 on CUDA");
  declare.Value(
      "--window-pattern", model->window_pattern,
      "nanochat: the pattern of layers that attend to a sliding window (S) or to all tokens (L). Default: the "
      "checkpoint's, else L");
  declare
      .Value("--logit-soft-cap", model->logit_soft_cap,
             "The cap of the logits of nanochat's variants E and G, whose files lack it: 15 (E) or 20 (G); 0: "
             "unknown, and the model computes no logits")
      ->check(CLI::NonNegativeNumber);
  declare
      .Value("--context-length", model->context_length,
             "TorchScript: tokens in the longest sequence that the module takes, which its file lacks; 0: unknown")
      ->check(CLI::Range(0, std::numeric_limits<int32_t>::max()));
  declare
      .Value("--vocab-size", model->vocabulary_size,
             "TorchScript: the number that token ids are below, which the file lacks; 0: unknown")
      ->check(CLI::Range(0, std::numeric_limits<int32_t>::max()));
  declare.Duration("--torchscript-timeout", model->torchscript_timeout,
                   "TorchScript: the longest that a forward pass may take, including the trial runs at start; a module "
                   "that takes longer in those is refused");
  declare.Without("--no-evaluation", model->evaluation,
                  "Leaves out the models' unembedding, which captures do not need: less memory, but no losses and no "
                  "logits (EvaluationService)");
  declare
      .Value(
          "--threads", flags->threads,
          "Threads of a forward pass on the CPU, divided among the devices of --device cpu,cpu or cpu+cpu; 0: one for "
          "each core")
      ->check(CLI::Range(0, 1024));
}

// Declares the flags of dictionaries, datasets, tokenizers and recordings.
void DeclareFiles(Declare declare, ServerFlags* flags, FlagLists* lists) {
  declare
      .List("--dictionary", lists->dictionaries,
            "NAME=PATH[@HOOK] of a sparse dictionary (a directory of SAELens, sparsify, dictionary_learning or Gemma "
            "Scope) for the only model, at the hook point HOOK; without @HOOK, at the one that its files name. Repeat "
            "the flag for more")
      ->type_name("NAME=PATH[@HOOK]");
  declare
      .List("--dataset", lists->datasets,
            "NAME=PATH of token ids: an .npy file, or raw ids with their type (NAME=tokens.bin:uint16). Repeat the "
            "flag for more")
      ->type_name("NAME=PATH");

  declare
      .List("--tokenizer", lists->tokenizers,
            "NAME=PATH of a model's tokenizer: a tokenizer.json, nanochat's tokenizer.pkl, or a directory with one. "
            "Default: the one beside the checkpoint. Repeat the flag for more")
      ->type_name("NAME=PATH");

  declare
      .Value("--recordings-dir", flags->recordings_dir,
             "Directory for recordings, which this server alone uses unless it has a --recordings-folder; empty: no "
             "recordings. Without --model the server only reads recordings")
      ->type_name("DIR");
  declare
      .Value("--recordings-folder", flags->recordings_folder,
             "Folder of this server's recordings in a --recordings-dir that several servers share, each with its own "
             "folder; `hookline merge` makes one recording from parts in all folders. Empty: DIR is not shared")
      ->type_name("NAME");
}

// Declares the flags of addresses and of who may use them.
void DeclareServing(Declare declare, ServerFlags* flags) {
  declare
      .List("--listen", flags->server.listen,
            "HOST:PORT or unix:PATH to serve on; port 0: any free one. Repeat the flag for more [127.0.0.1:7471]")
      ->type_name("HOST:PORT")
      ->check(AddressCheck());
  declare.Value("--tls-cert", flags->server.tls.certificate,
                "PEM file of the certificate, with its chain, for TLS 1.2 or later at every HOST:PORT; empty: no TLS. "
                "The TLS files are read again when they change");
  declare.Value("--tls-key", flags->server.tls.key, "PEM file of the certificate's private key, without a passphrase");
  declare.Value("--tls-client-ca", flags->server.tls.client_ca,
                "PEM file of the authority that must have signed clients' certificates; empty: clients need none");
  declare.Value("--auth-file", flags->server.auth_file,
                "JSON file of the clients and what they may do (`hookline token` prints a line for it); empty: anyone "
                "who can connect may do everything");
  declare.Switch("--insecure", flags->server.insecure,
                 "Allow addresses that other machines can reach, even without --auth-file");
  declare.Value("--port-file", flags->port_file, "File to write the first --listen's port to, once it is open");
  declare
      .Value("--metrics-listen", flags->metrics_listen,
             "HOST:PORT to serve Prometheus's /metrics on; empty: no metrics")
      ->check(AddressCheck());
  declare.Duration("--drain-timeout", flags->drain_timeout,
                   "The longest that running captures go on after SIGTERM, before they end with a resume token");
  declare.Value("--log-level", flags->log_level, "The least severe messages to log to standard error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  declare
      .Value("--log-format", flags->log_format,
             "text, or json: one object per line, with time, level and message, and for a finished call its values")
      ->check(CLI::IsMember({"text", "json"}));
}

// Declares the limits of memory for rows, batches and requests.
void DeclareMemory(Declare declare, ServerFlags* flags) {
  declare.Bytes("--slab-bytes", flags->engine.slab_bytes, "Size of a slab, the unit of host memory for rows")
      ->group(kLimits);
  declare.Value("--slab-count", flags->engine.slab_count, "Slabs, all allocated at start")->group(kLimits);
  declare
      .Value("--window-slabs", flags->engine.window_slabs,
             "Slabs reserved for a capture, unless its rows need more; 0: 32 on an accelerator, 8 on the CPU")
      ->group(kLimits);
  declare
      .Bytes("--max-pending-bytes", flags->engine.max_pending_bytes,
             "Bytes of one capture's rows that may wait on the device if they exceed its slabs")
      ->group(kLimits);
  declare
      .Bytes("--max-staged-bytes", flags->engine.max_staged_bytes,
             "Bytes of all captures' rows that may wait on one device; batches are formed so that they stay within it")
      ->group(kLimits);
  declare
      .Value("--max-batch-tokens", flags->engine.max_batch_tokens,
             "Positions in a forward pass; 0: 8192 on an accelerator, 2048 on the CPU")
      ->group(kLimits);
  declare
      .Duration("--max-batch-delay", flags->engine.max_batch_delay,
                "The longest that sequences wait for others to fill a batch")
      ->group(kLimits);
  declare.Value("--max-request-tokens", flags->engine.max_request_tokens, "Token ids in one message")->group(kLimits);
  declare.Value("--max-request-sequences", flags->engine.max_request_sequences, "Sequences in one message")
      ->group(kLimits);
  declare
      .Value("--max-held-tokens", flags->engine.max_held_tokens,
             "Token ids that the server holds for all clients together: those in no batch yet, and what scorings and "
             "searches for examples keep, counted alike; 4 to 16 bytes each")
      ->group(kLimits);
  declare
      .Value("--max-paused-tokens", flags->engine.max_paused_tokens,
             "Positions of forward passes that wait for rows from their clients (Substitute); each keeps a row of the "
             "residual stream on the device, or a few. One pass may have at most a quarter of them")
      ->group(kLimits);
  declare.Bytes("--max-request-bytes", flags->server.max_request_bytes, "Size of one message from a client")
      ->group(kLimits);
  declare
      .Value("--max-sequence-length", flags->engine.max_sequence_length,
             "Token ids in one sequence; if this is more than a model was made for, a model without learned positions "
             "computes them with a warning; 0: as many as the model was made for")
      ->group(kLimits);
}

// Declares the limits of recordings.
void DeclareRecordings(Declare declare, ServerFlags* flags) {
  declare
      .Bytes("--recordings-quota-bytes", flags->recordings.quota_bytes, "Size of all recordings together; 0: no limit")
      ->group(kLimits);
  declare
      .Bytes("--recordings-free-bytes", flags->recordings.free_bytes, "Free space that recordings leave on their disk")
      ->group(kLimits);
  declare
      .Bytes("--recordings-shard-bytes", flags->recordings.shard_bytes,
             "Approximate size of a recording's files; after a crash a recording continues after its last whole file")
      ->group(kLimits);
  declare
      .Bytes("--recordings-read-bytes", flags->recordings.read_bytes,
             "Memory for the messages of all reads of recordings; each takes two messages of max_message_bytes")
      ->group(kLimits);
}

// Declares the limits of the size and the number of captures.
void DeclareCaptures(Declare declare, ServerFlags* flags) {
  declare.Value("--max-hook-points", flags->engine.max_hook_points, "Hook points in one capture")->group(kLimits);
  declare
      .Value("--max-rows", flags->engine.max_rows, "Rows for each hook point of a capture; larger budgets are clipped")
      ->group(kLimits);
  declare.Value("--max-captures", flags->engine.max_captures, "Captures that run at a time; as many more may wait")
      ->group(kLimits);
  declare
      .Value("--max-captures-per-address", flags->engine.max_captures_per_address,
             "Captures of one client, or of one address where there is no auth file, running and waiting")
      ->group(kLimits);
}

// Declares how long captures wait for clients.
void DeclareStalls(Declare declare, ServerFlags* flags) {
  declare
      .Duration("--stall-timeout", flags->engine.stall_timeout,
                "The longest that a capture whose client neither reads nor sends keeps what others wait for, before "
                "it ends with a resume token")
      ->group(kLimits);
  declare
      .Duration("--answer-timeout", flags->engine.answer_timeout,
                "The longest that a forward pass waits for its client's next rows (Substitute), before the call ends")
      ->group(kLimits);
  declare
      .Duration("--feed-stall-timeout", flags->engine.feed_stall_timeout,
                "The longest that a feed waits for a member that does not read, before it goes on without that member")
      ->group(kLimits);
}

// Declares the limits of connections and of memory that clients share.
void DeclareConnections(Declare declare, ServerFlags* flags) {
  declare
      .Bytes("--shared-memory-bytes", flags->server.shared_memory_bytes,
             "Memory of clients on this machine that values are written to instead of being sent; 0: none")
      ->group(kLimits);
  declare
      .Value("--max-connections", flags->server.max_connections,
             "Connections at a time; never more than half of the descriptors that the process may have")
      ->group(kLimits);
  declare
      .Value("--max-connections-per-address", flags->server.max_connections_per_address,
             "Connections at a time from one client address")
      ->group(kLimits);
  declare
      .Duration("--connection-idle", flags->server.connection_idle,
                "A connection without calls is closed after this long; clients make another when they need it")
      ->group(kLimits);
  declare
      .Bytes("--max-incoming-bytes", flags->server.max_incoming_bytes,
             "Memory for incoming messages that are not complete yet, and for connections; at least twice "
             "--max-request-bytes")
      ->group(kLimits);
  declare
      .Value("--max-calls-per-connection", flags->server.max_calls_per_connection,
             "Calls at a time on one connection; more wait")
      ->group(kLimits);
  declare
      .Duration("--keepalive", flags->server.keepalive,
                "A silent connection is sent a keepalive ping after this long, and closed if no answer comes")
      ->group(kLimits);
}

}  // namespace

// The help lists the flags of each group in this order.
void DeclareFlags(CLI::App* app, ServerFlags* flags, FlagLists* lists, ModelOptions* model) {
  Declare declare(app);
  DeclareModels(declare, flags, lists, model);
  DeclareFiles(declare, flags, lists);
  DeclareServing(declare, flags);
  DeclareMemory(declare, flags);
  DeclareRecordings(declare, flags);
  DeclareCaptures(declare, flags);
  DeclareQuotas(&declare, &flags->engine.default_quotas);
  DeclareStalls(declare, flags);
  DeclareConnections(declare, flags);
}

}  // namespace hookline
