// Keeps gRPC's library running between tests. It shuts down when a test's last channel and server are gone, which takes
// ten seconds if its thread waits in a poll, and the next test would wait for that.
#include "grpc/grpc.h"

namespace {

[[maybe_unused]] const bool kept = (grpc_init(), true);

}  // namespace
