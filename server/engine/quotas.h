// Limits what one client may have at a time: which limits hold for it, and the refusals once it has reached them.
#ifndef HOOKLINE_SERVER_ENGINE_QUOTAS_H_
#define HOOKLINE_SERVER_ENGINE_QUOTAS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/capture/plan.h"
#include "server/engine/client_share.h"
#include "server/engine/options.h"

namespace hookline {

// Captures end within seconds to minutes; a client that is refused because too many wait may ask again after this time.
inline constexpr absl::Duration kQueueRetry = absl::Seconds(5);

// The share of the server that a client holds now.
struct ClientUse {
  int64_t running = 0;  // captures that were admitted and whose end the client has not consumed
  int64_t waiting = 0;
  int64_t slabs = 0;
  int64_t feeds = 0;  // captures that are members of feeds
};

// Returns the client's `quota` or, if it has none, the server's default; -1: no limit.
int64_t QuotaOf(const ClientIdentity& client, const EngineOptions& options,
                std::optional<int64_t> ClientQuotas::*quota);

// Captures and slabs beyond which a client's captures wait: its quotas or, without them, a quarter of the server's, so
// that no client keeps all others out.
int64_t MaxRunningCaptures(const ClientIdentity& client, const EngineOptions& options);
int64_t MaxSlabs(const ClientIdentity& client, const EngineOptions& options);
int64_t MaxWaitingCaptures(const ClientIdentity& client, const EngineOptions& options);

// Returns the most rows that a capture can bring of one hook point.
int64_t MostRows(const CapturePlan& plan);

// Returns RESOURCE_EXHAUSTED, naming the quota and the use, if the client may not have one more capture with this plan.
// If it only has to wait, the error says how long (RetryAfterOf). `rows` is MostRows of the plan, before its tokens
// were taken; only clients with a quota of rows need it.
absl::Status CheckQuotas(const ClientShare& share, const ClientUse& use, const CapturePlan& plan, int64_t rows,
                         const EngineOptions& options, absl::Time now);

// Returns whether captures that need `slabs` slabs may run beside what the client holds. A client that holds nothing
// always may; otherwise it would wait for ever.
bool MayRun(const ClientIdentity& client, const ClientUse& use, int64_t captures, int64_t slabs,
            const EngineOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_QUOTAS_H_
