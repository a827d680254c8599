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

// The share of the server that a client holds now.
struct ClientUse {
  int64_t running = 0;  // captures whose window it holds, or whose end it has not taken
  int64_t waiting = 0;
  int64_t slabs = 0;
  int64_t feeds = 0;  // that it is a member of, by its captures
};

// `quota` of the client, else of the server's defaults; -1: none.
int64_t QuotaOf(const ClientIdentity& client, const EngineOptions& options,
                std::optional<int64_t> ClientQuotas::*quota);

// Captures and slabs beyond which a client's captures wait: its quotas or, without them, a quarter of the server's, so
// that nobody keeps everybody else out.
int64_t MaxRunningCaptures(const ClientIdentity& client, const EngineOptions& options);
int64_t MaxSlabs(const ClientIdentity& client, const EngineOptions& options);
int64_t MaxWaitingCaptures(const ClientIdentity& client, const EngineOptions& options);

// The most rows that a capture may bring of one hook point.
int64_t MostRows(const CapturePlan& plan);

// RESOURCE_EXHAUSTED, naming the quota and the use: one more capture with this plan is not for this client. For rates
// with RetryAfterOf.
// `rows` is MostRows of the plan, before its tokens were taken; only clients with a quota of rows need it.
absl::Status CheckQuotas(const ClientShare& share, const ClientUse& use, const CapturePlan& plan, int64_t rows,
                         const EngineOptions& options, absl::Time now);

// Returns whether captures that need `slabs` slabs may run beside what the client holds. One that holds nothing may, or
// it would wait for ever.
bool MayRun(const ClientIdentity& client, const ClientUse& use, int64_t captures, int64_t slabs,
            const EngineOptions& options);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_QUOTAS_H_
