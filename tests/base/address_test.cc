#include "server/base/address.h"

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

TEST(Address, IsAHostAndAPort) {
  for (const auto& [text, host, port] : std::vector<std::tuple<const char*, const char*, int>>{
           {"127.0.0.1:7471", "127.0.0.1", 7471},
           {"localhost:1", "localhost", 1},
           {"[::1]:65535", "::1", 65535},
           {"gpu-3.cluster_a.example:80", "gpu-3.cluster_a.example", 80},
           {"0.0.0.0:0", "0.0.0.0", 0},
           {":9", "", 9},
       }) {
    absl::StatusOr<HostPort> parsed = ParseHostPort(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, host);
    EXPECT_EQ(parsed->port, port);
  }
}

TEST(Address, SaysWhatIsWrongWithIt) {
  for (const auto& [text, why] : std::vector<std::pair<std::string, const char*>>{
           {"", "is empty"},
           {"127.0.0.1", "has no port"},
           {"127.0.0.1:", "has the port \"\""},
           {"localhost:http", "has the port \"http\""},
           {"localhost:65536", "has the port \"65536\""},
           {"localhost:-1", "has the port \"-1\""},
           {"localhost:99999999999999999999", "which is not a number up to 65535"},
           {"::1:7471", "is an IPv6 address without brackets"},
           {"[::1]", "has no port"},
           {"[::1:7471", "is not an IPv6 address in brackets"},
           {"[1.2.3.4]:7471", "is not an IPv6 address in brackets"},
           {"http://localhost:7471", "begins with http://; leave that out"},
           {"local host:7471", "spaces"},
           {"localhost:7471 ", "spaces"},
           {"localhost:7471\n", "\\n"},
           {"a/b:7471", "has the host \"a/b\""},
       }) {
    const absl::Status status = ParseHostPort(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), HasSubstr(why)) << text;
    EXPECT_THAT(status.message(), HasSubstr("127.0.0.1:7471")) << text;
  }
}

TEST(Address, ToListenOnMayLeaveThingsOpen) {
  for (const char* text : {":0", "0.0.0.0:7471", "[::]:7471", "unix:/run/h.sock"}) {
    EXPECT_TRUE(CheckListenAddress(text).ok()) << text;
  }
  for (const char* text : {"127.0.0.1", "unix:", "::1", "dns:///localhost:1"}) {
    EXPECT_FALSE(CheckListenAddress(text).ok()) << text;
  }
}

TEST(Address, OfAServerMayBeANameOfGrpcs) {
  for (const char* text : {"localhost:7471", "dns:///localhost:7471", "dns://8.8.8.8/server:1", "dns:server:1",
                           "ipv4:10.0.0.1:7471", "ipv6:[::1]:7471", "unix:/run/h.sock", "unix-abstract:h"}) {
    EXPECT_TRUE(CheckServerAddress(text).ok()) << text << CheckServerAddress(text);
  }
  for (const char* text : {"localhost", ":7471", "localhost:0", "http://localhost:7471", "dns:///localhost", "::1"}) {
    EXPECT_FALSE(CheckServerAddress(text).ok()) << text;
  }
  EXPECT_EQ(ServerHostPort("dns://8.8.8.8/server:17").host, "server");
  EXPECT_EQ(ServerHostPort("ipv6:[::1]:17").port, 17);
  EXPECT_EQ(ServerHostPort("unix:/run/h.sock").host, "");
}

TEST(Address, IsLoopbackByWhatItIsNotHowItBegins) {
  for (const char* host : {"localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"}) {
    EXPECT_TRUE(IsLoopbackHost(host)) << host;
  }
  for (const char* host : {"", "127.0.0.1.example.com", "127.example", "10.0.0.1", "::", "localhost.example"}) {
    EXPECT_FALSE(IsLoopbackHost(host)) << host;
  }
}

}  // namespace
}  // namespace hookline
