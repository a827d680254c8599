// Addresses of this machine's loopback interface, for tests with sockets.
#ifndef HOOKLINE_TESTS_SUPPORT_LOOPBACK_H_
#define HOOKLINE_TESTS_SUPPORT_LOOPBACK_H_

#include <netinet/in.h>

#include <cstdint>

namespace hookline {

inline sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

}  // namespace hookline

#endif  // HOOKLINE_TESTS_SUPPORT_LOOPBACK_H_
