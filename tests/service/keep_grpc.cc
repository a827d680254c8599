// Keeps gRPC's library running between tests. Shutting it down, which happens when a test's last channel and server are
// gone, takes ten seconds where its thread waits in a poll, and the next test waits for it.
#include "grpc/grpc.h"

namespace {

[[maybe_unused]] const bool kept = (grpc_init(), true);

}  // namespace
