// The input is an auth file.
#include "server/service/auth/auth_file.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  const auto clients = hookline::AuthFile::Parse(hookline::AsText(data, bytes));
  hookline::CheckMessage(clients.status());
  if (!clients.ok()) return 0;
  for (const hookline::AuthClient& client : clients->clients()) {
    if (client.uid.has_value() && clients->FindByUid(*client.uid) != &client) __builtin_trap();
    if (!client.san.empty() && clients->FindBySan(client.san) != &client) __builtin_trap();
  }
  return 0;
}
