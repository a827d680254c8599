#include "server/metrics/metrics.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "server/base/file_system.h"
#include "server/recording/catalog.h"
#include "tests/service/fake_engine.h"
#include "tests/support/loopback.h"

namespace hookline {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

int Connect(int port) {
  const int connection = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Loopback(port);
  EXPECT_EQ(connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  return connection;
}

std::string Get(int port, const std::string& path) {
  const int connection = Connect(port);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(send(connection, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string response;
  char buffer[4096];
  ssize_t bytes;
  while ((bytes = read(connection, buffer, sizeof buffer)) > 0) response.append(buffer, bytes);
  close(connection);
  return response;
}

TEST(Metrics, ShowTheEnginesSnapshotToWhoeverAsks) {
  FakeEngine engine;
  EngineSnapshot snapshot;
  snapshot.slabs_free = 60;
  snapshot.slabs_reserved = 3;
  snapshot.slabs_filled = 1;
  snapshot.captures_queued = 2;
  snapshot.captures_running = 5;
  snapshot.captures_ended = {11, 12, 13, 14, 15};
  snapshot.hook_points = {{"demo", "hook_embed", 1000, 256000}};
  EngineSnapshot::ModelLoad load;
  load.model = "demo";
  load.tokens = 12345;
  load.batch_fill = {{0.5, 1}, {3, 4, 0}, 5.5};
  load.forward_seconds = {{0.001, 0.1}, {1, 2, 4}, 1.25};
  load.queue_seconds = {{0.001}, {6, 1}, 0.5};
  load.device_memory_bytes = 1 << 20;
  load.captures_queued = 2;
  load.scores = 3;
  load.tokens_queued = 777;
  EngineSnapshot::ReplicaLoad replica;
  replica.stages = {{"cuda:0", 0, 3, 0}, {"cuda:1", 3, 3, 0}};
  replica.tokens = 4000;
  replica.busy_share = 0.75;
  replica.launched_batches = 2;
  load.replicas = {replica, replica};
  load.replicas[1].is_lost = true;
  snapshot.models = {load};
  engine.SetSnapshot(snapshot);

  auto server = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = Get((*server)->port(), "/metrics");
  for (const char* line : {
           "hookline_slabs{state=\"free\"} 60\n",
           "hookline_slabs{state=\"reserved\"} 3\n",
           "hookline_slabs{state=\"filled\"} 1\n",
           "hookline_captures{state=\"queued\"} 2\n",
           "hookline_captures{state=\"running\"} 5\n",
           "# TYPE hookline_captures_ended_total counter\n",
           "hookline_captures_ended_total{reason=\"budget\"} 11\n",
           "hookline_captures_ended_total{reason=\"error\"} 15\n",
           "hookline_rows_total{model=\"demo\",hook_point=\"hook_embed\"} 1000\n",
           "hookline_bytes_total{model=\"demo\",hook_point=\"hook_embed\"} 256000\n",
           "hookline_tokens_total{model=\"demo\"} 12345\n",
           "hookline_batch_fill_ratio_bucket{model=\"demo\",le=\"0.5\"} 3\n",
           "hookline_batch_fill_ratio_bucket{model=\"demo\",le=\"1\"} 7\n",
           "hookline_forward_seconds_bucket{model=\"demo\",le=\"+Inf\"} 7\n",
           "hookline_forward_seconds_sum{model=\"demo\"} 1.25\n",
           "hookline_queue_seconds_count{model=\"demo\"} 7\n",
           "hookline_device_memory_bytes{model=\"demo\"} 1048576\n",
           "hookline_replica_up{model=\"demo\",replica=\"0\",device=\"cuda:0+cuda:1\"} 1\n",
           "hookline_replica_up{model=\"demo\",replica=\"1\",device=\"cuda:0+cuda:1\"} 0\n",
           "hookline_replica_load{model=\"demo\",replica=\"0\",device=\"cuda:0+cuda:1\"} 0.75\n",
           "hookline_replica_tokens_total{model=\"demo\",replica=\"0\",device=\"cuda:0+cuda:1\"} 4000\n",
           "hookline_replica_batches{model=\"demo\",replica=\"0\",device=\"cuda:0+cuda:1\"} 2\n",
           "hookline_queue_depth{model=\"demo\",queue=\"captures\"} 2\n",
           "hookline_queue_depth{model=\"demo\",queue=\"scores\"} 3\n",
           "hookline_queued_tokens{model=\"demo\"} 777\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

EngineSnapshot::ClientLoad MakeLoad(const std::string& client, bool is_authenticated, int64_t captures_waiting,
                                    int64_t slabs, double idle_seconds) {
  EngineSnapshot::ClientLoad load;
  load.client = client;
  load.is_authenticated = is_authenticated;
  load.captures_waiting = captures_waiting;
  load.slabs = slabs;
  load.tokens = 100;
  load.idle_seconds = idle_seconds;
  return load;
}

TEST(Metrics, ShowEachClientOfTheAuthFileAndAllOthersAsOne) {
  EngineSnapshot snapshot;
  snapshot.clients = {MakeLoad("alice", true, 1, 16, 2.5), MakeLoad("10.0.0.1", false, 3, 4, 7),
                      MakeLoad("10.0.0.2", false, 5, 8, 1), MakeLoad("unnamed", true, 9, 32, 0)};
  snapshot.captures_stalled = 2;
  FakeEngine engine;
  engine.SetSnapshot(snapshot);
  auto server = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = Get((*server)->port(), "/metrics");
  for (const char* line : {
           "hookline_client_captures{client=\"alice\",authenticated=\"true\",state=\"queued\"} 1\n",
           "hookline_client_slabs{client=\"alice\",authenticated=\"true\"} 16\n",
           "hookline_client_tokens_total{client=\"alice\",authenticated=\"true\"} 100\n",
           "hookline_client_captures{client=\"unnamed\",authenticated=\"false\",state=\"queued\"} 8\n",
           "hookline_client_slabs{client=\"unnamed\",authenticated=\"false\"} 12\n",
           "hookline_client_idle_seconds{client=\"unnamed\",authenticated=\"false\"} 7\n",
           "hookline_client_captures{client=\"unnamed\",authenticated=\"true\",state=\"queued\"} 9\n",
           "hookline_captures_stalled_total 2\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, Not(HasSubstr("10.0.0.")));
  EXPECT_THAT(text, Not(HasSubstr("hookline_client_tokens_total{client=\"unnamed\",authenticated=\"false\"}")));
}

TEST(Metrics, ShowTheCallsWhereTheyAreCounted) {
  FakeEngine engine;
  CallMetrics calls;
  calls.Ended("/hookline.v1.EvaluationService/Score", "OK", absl::Seconds(3));
  auto server = MetricsServer::Start("127.0.0.1:0", &engine, /*catalog=*/nullptr, &calls);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = Get((*server)->port(), "/metrics");
  const std::string score = "{grpc_service=\"hookline.v1.EvaluationService\",grpc_method=\"Score\"";
  EXPECT_THAT(text, HasSubstr("hookline_grpc_server_handling_seconds_sum" + score + "} 3\n"));
  EXPECT_THAT(text, HasSubstr("hookline_grpc_server_handling_seconds_bucket" + score + ",le=\"2.5\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("hookline_grpc_server_handling_seconds_bucket" + score + ",le=\"5\"} 1\n"));
}

TEST(Metrics, ShowTheVersionAndWhatTheProcessUses) {
  FakeEngine engine;
  auto server = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = Get((*server)->port(), "/metrics");
  EXPECT_THAT(text, ContainsRegex("hookline_build_info\\{version=\"[0-9]+\\.[0-9]+\\.[0-9]+\"\\} 1\n"));
  for (const char* name : {"process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_threads"}) {
    EXPECT_THAT(text, ContainsRegex(std::string(name) + " [1-9]"));
  }
  EXPECT_THAT(text, ContainsRegex("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total [0-9.]+"));
}

TEST(Metrics, OfSlowAndEndlessRequestsNobodyElseNotices) {
  FakeEngine engine;
  auto server = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  std::vector<int> slow;
  for (int i = 0; i < 100; ++i) {
    slow.push_back(Connect(port));
    send(slow.back(), "GET /metrics HTTP/1.1\r\nA: b\r\n", 29, MSG_NOSIGNAL);
    if (i % 10 == 0) {
      EXPECT_THAT(Get(port, "/metrics"), HasSubstr("200 OK"));
    }
  }
  const int endless = Connect(port);
  const std::string line(1 << 16, 'A');
  ssize_t sent = 0;
  for (int i = 0; i < 1000 && sent >= 0; ++i) sent = send(endless, line.data(), line.size(), MSG_NOSIGNAL);
  EXPECT_LT(sent, 0) << "64 MB were taken";
  EXPECT_THAT(Get(port, "/metrics"), HasSubstr("200 OK"));
  server->reset();  // does not wait for any of them
  for (int connection : slow) close(connection);
  close(endless);
}

TEST(Metrics, AnswerNothingElse) {
  FakeEngine engine;
  auto server = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Get((*server)->port(), "/"), HasSubstr("404 Not Found"));
  EXPECT_THAT(Get((*server)->port(), "/metrics?a=b"), HasSubstr("200 OK"));
  EXPECT_THAT(Get((*server)->port(), "/metrics now"), HasSubstr("400 Bad Request"));
}

// Opens an empty catalog in a directory of its own.
std::unique_ptr<Catalog> MakeCatalog(const std::string& name, const CatalogOptions& options) {
  const std::string path = ::testing::TempDir() + "metrics-" + name + "-" + std::to_string(getpid());
  std::filesystem::remove_all(path);
  std::filesystem::create_directory(path);
  return *Catalog::Open(*OpenDirectory(path), options);
}

TEST(Metrics, ShowRecordingsByStateAndTheRoomThatTheyHave) {
  CatalogOptions options;
  options.quota_bytes = 1 << 20;
  options.free_bytes = 4096;
  std::unique_ptr<Catalog> catalog = MakeCatalog("states", options);
  Manifest manifest;
  manifest.name = "run1";
  manifest.hook_points = {{"hook_embed", 4, 100}};
  absl::StatusOr<std::unique_ptr<RecordingWriter>> writer = catalog->Create(manifest);
  ASSERT_TRUE(writer.ok()) << writer.status();
  FakeEngine engine;
  auto server = MetricsServer::Start("127.0.0.1:0", &engine, catalog.get());
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string text = Get((*server)->port(), "/metrics");
  for (const char* line : {"hookline_recordings{state=\"running\"} 1\n", "hookline_recordings{state=\"failed\"} 0\n",
                           "hookline_recordings{state=\"unreadable\"} 0\n", "hookline_recordings_quota_bytes 1048576\n",
                           "hookline_recordings_disk_floor_bytes 4096\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, ContainsRegex("hookline_recordings_bytes [1-9]"));
  EXPECT_THAT(text, ContainsRegex("hookline_recordings_disk_free_bytes [1-9]"));
  server->reset();
  writer->reset();
}

TEST(Metrics, LeaveOutAQuotaThatThereIsNotAndRecordingsThatNobodyKeeps) {
  FakeEngine engine;
  std::unique_ptr<Catalog> catalog = MakeCatalog("quota", CatalogOptions());
  auto with = MetricsServer::Start("127.0.0.1:0", &engine, catalog.get());
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_THAT(Get((*with)->port(), "/metrics"), Not(HasSubstr("quota_bytes")));
  auto without = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_THAT(Get((*without)->port(), "/metrics"), Not(HasSubstr("hookline_recordings")));
}

TEST(Metrics, SayWhetherOthersReachThem) {
  FakeEngine engine;
  EXPECT_TRUE((*MetricsServer::Start("localhost:0", &engine))->is_loopback());
  EXPECT_FALSE((*MetricsServer::Start("0.0.0.0:0", &engine))->is_loopback());
}

TEST(Metrics, RefuseAnAddressThatIsTakenNamingIt) {
  FakeEngine engine;
  auto first = MetricsServer::Start("127.0.0.1:0", &engine);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  absl::Status status = MetricsServer::Start(taken, &engine).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(taken));
}

}  // namespace
}  // namespace hookline
