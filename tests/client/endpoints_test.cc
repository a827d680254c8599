#include "client/cpp/endpoints.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace hookline::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FileOf(const std::string& text) {
  const std::string path = testing::TempDir() + "/endpoints";
  std::ofstream(path, std::ios::binary) << text;
  return "hookline://" + path;
}

TEST(ReadEndpoints, TakesOneAddressOrSeveralOrAFile) {
  EXPECT_THAT(ReadEndpoints("a:1")->addresses, ElementsAre("a:1"));
  EXPECT_THAT(ReadEndpoints("a:1,grpcs://b:2,[::1]:3")->addresses, ElementsAre("a:1", "grpcs://b:2", "[::1]:3"));
  const absl::StatusOr<Endpoints> file = ReadEndpoints(FileOf("# by the script\r\n\n  node1:7471\r\nnode2:7471"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->addresses, ElementsAre("node1:7471", "node2:7471"));
}

TEST(ReadEndpoints, RefusesWhatNamesNoServersAndSaysWhere) {
  const auto why = [](const std::string& text) { return std::string(ReadEndpoints(text).status().message()); };
  EXPECT_THAT(why("a:1,b:1,a:1"), HasSubstr("a:1 is named twice"));
  EXPECT_THAT(why(FileOf("a:1\na:1\n")), HasSubstr("a:1 is named twice"));
  EXPECT_THAT(why(FileOf("# nothing\n")), HasSubstr("names no server"));
  EXPECT_THAT(why(FileOf("")), HasSubstr("names no server"));
  EXPECT_THAT(why(FileOf("node1:7471\nnode2\n")), HasSubstr("line 2: \"node2\" has no port"));
  EXPECT_THAT(why(FileOf(std::string((1 << 20) + 1, '#'))), HasSubstr("more than 1048576 bytes"));
  EXPECT_THAT(why("hookline:///no/such/file"), HasSubstr("/no/such/file: the file cannot be read"));
  EXPECT_THAT(why("hookline:///"), HasSubstr("cannot be read"));
  std::string many = "a:1";
  for (int port = 2; port <= 257; ++port) many += ",a:" + std::to_string(port);
  EXPECT_THAT(why(many), HasSubstr("257 servers are named; at most 256 are allowed"));
}

ResolveHost Knows(const std::vector<std::string>& hosts) {
  return [hosts](const std::string& host) { return host == "lab" ? hosts : std::vector<std::string>(); };
}

std::vector<std::string> Spread(const std::string& text, const ResolveHost& resolve) {
  Endpoints endpoints = *ReadEndpoints(text);
  EXPECT_TRUE(SpreadNames(/*secure=*/false, resolve, &endpoints).ok());
  return endpoints.addresses;
}

TEST(SpreadNames, PutsAllAddressesOfANameInItsPlace) {
  const ResolveHost two = Knows({"10.0.0.1", "10.0.0.2", "10.0.0.2"});
  EXPECT_THAT(Spread("lab:7471", two), ElementsAre("10.0.0.1:7471", "10.0.0.2:7471"));
  EXPECT_THAT(Spread("x:1,lab:2", two), ElementsAre("x:1", "10.0.0.1:2", "10.0.0.2:2"));
  EXPECT_THAT(Spread("lab:7471", Knows({"10.0.0.1"})), ElementsAre("lab:7471"));
  EXPECT_THAT(Spread("dns:///lab:7471", two), ElementsAre("dns:///lab:7471"));
  EXPECT_THAT(Spread(FileOf("lab:7471\n"), two), ElementsAre("lab:7471"));
}

TEST(SpreadNames, LeavesWhatACertificateNames) {
  const ResolveHost two = Knows({"10.0.0.1", "10.0.0.2"});
  Endpoints one = *ReadEndpoints("lab:7471"), list = *ReadEndpoints("lab:7471,x:1");
  EXPECT_TRUE(SpreadNames(/*secure=*/true, two, &one).ok());
  EXPECT_THAT(one.addresses, ElementsAre("lab:7471"));
  EXPECT_THAT(SpreadNames(/*secure=*/true, two, &list).message(),
              HasSubstr("lab has 2 addresses, which no certificate names"));
}

}  // namespace
}  // namespace hookline::client
