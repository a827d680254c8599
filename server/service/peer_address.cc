#include "server/service/peer_address.h"

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace hookline {

std::string PeerAddress(absl::string_view peer) {
  if (absl::StartsWith(peer, "unix:") || absl::StartsWith(peer, "unix-abstract:")) return "unix";
  if (absl::ConsumePrefix(&peer, "ipv4:")) return std::string(peer.substr(0, peer.rfind(':')));
  if (absl::ConsumePrefix(&peer, "ipv6:")) {
    // gRPC escapes the brackets, and a zone's percent sign twice.
    const std::string text = absl::StrReplaceAll(peer, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}});
    absl::string_view address = text;
    if (absl::ConsumePrefix(&address, "[")) address = address.substr(0, address.rfind(']'));
    absl::ConsumePrefix(&address, "::ffff:");
    return std::string(address);
  }
  return std::string(peer);
}

}  // namespace hookline
