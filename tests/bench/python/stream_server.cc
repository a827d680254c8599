// A server whose rows cost nothing, for measuring receivers: every capture of hook point `a` gets `max_activations`
// rows of 768 floats, in messages of about 1 MiB.
//
//   stream_server    prints its port and serves until its standard input ends
#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "server/base/freed_memory.h"
#include "server/service/server.h"
#include "spdlog/spdlog.h"
#include "tests/service/fake_engine.h"

int main() {
  hookline::KeepFreedMemory();
  spdlog::set_level(spdlog::level::warn);  // without a line for each call
  hookline::FakeEngineOptions options;
  options.write_values = false;
  hookline::FakeEngine engine(std::move(options));
  hookline::ServerOptions server_options;
  server_options.listen = {"127.0.0.1:0"};
  auto server = hookline::Server::Start(server_options, &engine);
  if (!server.ok()) {
    std::cerr << server.status() << '\n';
    return 1;
  }
  std::cout << (*server)->ports()[0] << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
  }
  return 0;
}
