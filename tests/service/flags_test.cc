#include "server/flags.h"

#include <cstdlib>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

// Returns null if the program goes on, with `flags`.
std::optional<int> Parse(std::vector<const char*> arguments, ServerFlags* flags) {
  arguments.insert(arguments.begin(), "hookline-server");
  return ParseFlags(static_cast<int>(arguments.size()), arguments.data(), flags);
}

class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_.c_str()); }

 private:
  const std::string name_;
};

TEST(Flags, StayOnTheLoopbackUnlessToldOtherwise) {
  ServerFlags flags;
  ASSERT_EQ(Parse({"--model", "checkpoints/d20"}, &flags), std::nullopt);
  EXPECT_THAT(flags.server.listen, ElementsAre("127.0.0.1:7471"));
  EXPECT_EQ(flags.metrics_listen, "");
  ASSERT_EQ(flags.models.size(), 1u);
  EXPECT_EQ(flags.models[0].path, "checkpoints/d20");
  EXPECT_EQ(flags.models[0].name, "");
  EXPECT_EQ(flags.models[0].device, "auto");
}

TEST(Flags, ADirectoryOfRecordingsNeedsNoModel) {
  ServerFlags flags;
  ASSERT_EQ(Parse({"--recordings-dir=/r", "--recordings-quota-bytes=3GiB", "--recordings-free-bytes=5MiB",
                   "--recordings-shard-bytes=64KiB", "--recordings-read-bytes=7MiB"},
                  &flags),
            std::nullopt);
  EXPECT_TRUE(flags.models.empty());
  EXPECT_EQ(flags.recordings_dir, "/r");
  EXPECT_EQ(flags.recordings.quota_bytes, int64_t{3} << 30);
  EXPECT_EQ(flags.recordings.free_bytes, int64_t{5} << 20);
  EXPECT_EQ(flags.recordings.shard_bytes, int64_t{64} << 10);
  EXPECT_EQ(flags.recordings.read_bytes, int64_t{7} << 20);
}

TEST(Flags, SetEveryLimit) {
  ServerFlags flags;
  ASSERT_EQ(Parse({"--model=m",
                   "--step=12",
                   "--device=cuda:1",
                   "--dtype=float16",
                   "--window-pattern=SSSL",
                   "--logit-soft-cap=20",
                   "--context-length=96",
                   "--vocab-size=120",
                   "--torchscript-timeout=5s",
                   "--threads=3",
                   "--listen=0.0.0.0:1",
                   "--listen=unix:/run/h.sock",
                   "--port-file=port",
                   "--metrics-listen=:9",
                   "--drain-timeout=5s",
                   "--log-level=debug",
                   "--log-format=json",
                   "--slab-bytes=64KiB",
                   "--slab-count=9",
                   "--window-slabs=2",
                   "--max-pending-bytes=1GiB",
                   "--max-batch-tokens=77",
                   "--max-batch-delay=3ms",
                   "--max-request-tokens=88",
                   "--max-request-sequences=89",
                   "--max-held-tokens=90",
                   "--max-request-bytes=2MiB",
                   "--max-sequence-length=99",
                   "--max-hook-points=11",
                   "--max-rows=22",
                   "--max-captures=33",
                   "--max-captures-per-address=44",
                   "--shared-memory-bytes=3MiB",
                   "--max-connections=45",
                   "--max-connections-per-address=46",
                   "--connection-idle=47s",
                   "--max-incoming-bytes=48MiB",
                   "--max-calls-per-connection=55",
                   "--feed-stall-timeout=1m",
                   "--stall-timeout=2m",
                   "--answer-timeout=7s",
                   "--max-paused-tokens=4096",
                   "--client-captures=56",
                   "--client-waiting=57",
                   "--client-slabs=58",
                   "--client-tokens-per-second=59",
                   "--client-burst-tokens=60",
                   "--client-rows=61",
                   "--client-recordings=62",
                   "--client-recording-bytes=63",
                   "--client-feeds=64",
                   "--tls-cert=c.pem",
                   "--tls-key=k.pem",
                   "--tls-client-ca=ca.pem",
                   "--auth-file=clients.json",
                   "--insecure",
                   "--keepalive=10s"},
                  &flags),
            std::nullopt);
  EXPECT_EQ(flags.models[0].step, 12);
  EXPECT_EQ(flags.models[0].device, "cuda:1");
  EXPECT_EQ(flags.models[0].dtype, "float16");
  EXPECT_EQ(flags.models[0].window_pattern, "SSSL");
  EXPECT_EQ(flags.models[0].logit_soft_cap, 20);
  EXPECT_EQ(flags.models[0].context_length, 96);
  EXPECT_EQ(flags.models[0].vocabulary_size, 120);
  EXPECT_EQ(flags.models[0].torchscript_timeout, absl::Seconds(5));
  EXPECT_EQ(flags.threads, 3);
  EXPECT_THAT(flags.server.listen, ElementsAre("0.0.0.0:1", "unix:/run/h.sock"));
  EXPECT_EQ(flags.port_file, "port");
  EXPECT_EQ(flags.metrics_listen, ":9");
  EXPECT_EQ(flags.drain_timeout, absl::Seconds(5));
  EXPECT_EQ(flags.log_level, "debug");
  EXPECT_EQ(flags.log_format, "json");
  EXPECT_EQ(flags.engine.slab_bytes, 64 << 10);
  EXPECT_EQ(flags.engine.slab_count, 9);
  EXPECT_EQ(flags.engine.window_slabs, 2);
  EXPECT_EQ(flags.engine.max_pending_bytes, 1 << 30);
  EXPECT_EQ(flags.engine.max_batch_tokens, 77);
  EXPECT_EQ(flags.engine.max_batch_delay, absl::Milliseconds(3));
  EXPECT_EQ(flags.engine.max_request_tokens, 88);
  EXPECT_EQ(flags.engine.max_request_sequences, 89);
  EXPECT_EQ(flags.engine.max_held_tokens, 90);
  EXPECT_EQ(flags.server.max_request_bytes, 2 << 20);
  EXPECT_EQ(flags.engine.max_sequence_length, 99);
  EXPECT_EQ(flags.engine.max_hook_points, 11);
  EXPECT_EQ(flags.engine.max_rows, 22);
  EXPECT_EQ(flags.engine.max_captures, 33);
  EXPECT_EQ(flags.engine.max_captures_per_address, 44);
  EXPECT_EQ(flags.engine.stall_timeout, absl::Minutes(2));
  EXPECT_EQ(flags.engine.answer_timeout, absl::Seconds(7));
  EXPECT_EQ(flags.engine.max_paused_tokens, 4096);
  EXPECT_EQ(flags.engine.default_quotas.captures, 56);
  EXPECT_EQ(flags.engine.default_quotas.waiting, 57);
  EXPECT_EQ(flags.engine.default_quotas.slabs, 58);
  EXPECT_EQ(flags.engine.default_quotas.tokens_per_second, 59);
  EXPECT_EQ(flags.engine.default_quotas.burst_tokens, 60);
  EXPECT_EQ(flags.engine.default_quotas.rows, 61);
  EXPECT_EQ(flags.engine.default_quotas.recordings, 62);
  EXPECT_EQ(flags.engine.default_quotas.recording_bytes, 63);
  EXPECT_EQ(flags.engine.default_quotas.feeds, 64);
  EXPECT_EQ(flags.server.tls.certificate, "c.pem");
  EXPECT_EQ(flags.server.tls.key, "k.pem");
  EXPECT_EQ(flags.server.tls.client_ca, "ca.pem");
  EXPECT_EQ(flags.server.auth_file, "clients.json");
  EXPECT_TRUE(flags.server.insecure);
  EXPECT_EQ(flags.server.shared_memory_bytes, 3 << 20);
  EXPECT_EQ(flags.server.max_connections, 45);
  EXPECT_EQ(flags.server.max_connections_per_address, 46);
  EXPECT_EQ(flags.server.connection_idle, absl::Seconds(47));
  EXPECT_EQ(flags.server.max_incoming_bytes, 48 << 20);
  EXPECT_EQ(flags.server.max_calls_per_connection, 55);
  EXPECT_EQ(flags.engine.feed_stall_timeout, absl::Minutes(1));
  EXPECT_EQ(flags.server.keepalive, absl::Seconds(10));
}

TEST(Flags, AllStandInTheServicesEnvironmentFile) {
  const auto variables = [](const std::string& text) {
    std::set<std::string> names;
    for (size_t begin = text.find("HOOKLINE_"); begin != std::string::npos;) {
      const size_t end = text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", begin);
      names.insert(text.substr(begin, end - begin));
      begin = text.find("HOOKLINE_", end);
    }
    return names;
  };
  std::ifstream file(HOOKLINE_ENVIRONMENT_FILE);
  std::vector<std::unique_ptr<Environment>> settings;
  std::string all;
  for (std::string line; std::getline(file, line);) {
    all += line;
    // The defaults follow a `#` without a space.
    const std::string setting = line.substr(line[0] == '#' ? 1 : 0);
    const size_t equals = setting.find('=');
    if (setting.rfind("HOOKLINE_", 0) != 0 || equals + 1 == setting.size()) continue;
    settings.push_back(
        std::make_unique<Environment>(setting.substr(0, equals).c_str(), setting.substr(equals + 1).c_str()));
  }
  ServerFlags flags;
  CaptureStdout();
  EXPECT_EQ(Parse({"--help"}, &flags), kExitOk);
  EXPECT_EQ(variables(all), variables(GetCapturedStdout()));

  ASSERT_EQ(Parse({}, &flags), std::nullopt);
  const ServerFlags defaults;
  EXPECT_EQ(flags.engine.slab_bytes, defaults.engine.slab_bytes);
  EXPECT_EQ(flags.engine.max_rows, defaults.engine.max_rows);
  EXPECT_EQ(flags.engine.feed_stall_timeout, defaults.engine.feed_stall_timeout);
  EXPECT_EQ(flags.engine.stall_timeout, defaults.engine.stall_timeout);
  EXPECT_EQ(flags.engine.answer_timeout, defaults.engine.answer_timeout);
  EXPECT_EQ(flags.engine.max_paused_tokens, defaults.engine.max_paused_tokens);
  EXPECT_EQ(flags.server.shared_memory_bytes, defaults.server.shared_memory_bytes);
  EXPECT_EQ(flags.server.keepalive, defaults.server.keepalive);
  EXPECT_EQ(flags.recordings.free_bytes, defaults.recordings.free_bytes);
  EXPECT_EQ(flags.recordings.shard_bytes, defaults.recordings.shard_bytes);
}

TEST(Flags, TakeNamesBeforePaths) {
  ServerFlags flags;
  ASSERT_EQ(Parse({"--model", "demo=/a/b", "--model", "/runs/lr=3/d20", "--dataset", "pile=/d/pile.npy", "--dataset",
                   "bytes=x.bin:uint8"},
                  &flags),
            std::nullopt);
  ASSERT_EQ(flags.models.size(), 2u);
  EXPECT_EQ(flags.models[0].name, "demo");
  EXPECT_EQ(flags.models[0].path, "/a/b");
  EXPECT_EQ(flags.models[1].name, "");
  EXPECT_EQ(flags.models[1].path, "/runs/lr=3/d20");
  ASSERT_EQ(flags.datasets.size(), 2u);
  EXPECT_EQ(flags.datasets[1].name, "bytes");
  EXPECT_EQ(flags.datasets[1].source, "x.bin:uint8");
}

TEST(Flags, ComeFromTheEnvironmentToo) {
  Environment model("HOOKLINE_MODEL", "a=/m/a,b=/m/b");
  Environment slabs("HOOKLINE_SLAB_COUNT", "17");
  Environment delay("HOOKLINE_MAX_BATCH_DELAY", "7ms");
  Environment bytes("HOOKLINE_SLAB_BYTES", "2MiB");
  ServerFlags flags;
  ASSERT_EQ(Parse({"--slab-bytes=1MiB"}, &flags), std::nullopt);
  ASSERT_EQ(flags.models.size(), 2u);
  EXPECT_EQ(flags.models[1].name, "b");
  EXPECT_EQ(flags.engine.slab_count, 17);
  EXPECT_EQ(flags.engine.max_batch_delay, absl::Milliseconds(7));
  EXPECT_EQ(flags.engine.slab_bytes, 1 << 20);
}

TEST(Flags, EndWithTwoAfterAMistakeNamingIt) {
  struct Mistake {
    std::vector<const char*> arguments;
    const char* said;
  };
  for (const Mistake& mistake : std::vector<Mistake>{
           {{}, "--model"},
           {{"--model=m", "--slab-bits=3"}, "--slab-bits"},
           {{"--model=m", "--slab-count=many"}, "--slab-count"},
           {{"--model=m", "--slab-bytes=1parsec"}, "--slab-bytes"},
           {{"--model=m", "--drain-timeout=soon"}, "`soon`"},
           {{"--model=m", "--log-level=loud"}, "loud"},
           {{"--model=m", "--log-format=xml"}, "xml"},
           {{"--model=m", "--dataset=pile.npy"}, "`pile.npy`"},
           {{"--model=m", "--dataset=a=x", "--dataset=a=y"}, "`a`"},
           {{"--model=a=x", "--model=a=y"}, "`a`"},
           {{"--model=a="}, "`a=`"},
           {{"--model=m", "left"}, "left"},
       }) {
    ServerFlags flags;
    CaptureStderr();
    const std::optional<int> exit_code = Parse(mistake.arguments, &flags);
    EXPECT_THAT(GetCapturedStderr(), HasSubstr(mistake.said));
    EXPECT_EQ(exit_code, kExitUsage) << mistake.said;
  }
}

TEST(Flags, ExplainThemselves) {
  ServerFlags flags;
  CaptureStdout();
  EXPECT_EQ(Parse({"--help"}, &flags), kExitOk);
  EXPECT_THAT(GetCapturedStdout(), AllOf(HasSubstr("--model"), HasSubstr("HOOKLINE_MODEL"), HasSubstr("127.0.0.1:7471"),
                                         HasSubstr("Exit codes")));
  CaptureStdout();
  EXPECT_EQ(Parse({"--version"}, &flags), kExitOk);
  EXPECT_THAT(GetCapturedStdout(), HasSubstr("hookline-server 0."));
}

}  // namespace
}  // namespace hookline
