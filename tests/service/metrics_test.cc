#include "server/metrics/metrics.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/service/fake_engine.h"
#include "tests/support/loopback.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

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
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
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
  server->reset();  // waits for none of them
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
