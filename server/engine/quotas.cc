#include "server/engine/quotas.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/quota_refusal.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// By default a client may have a quarter of what all share, so that three others find room beside it.
constexpr int64_t kDefaultPart = 4;

absl::Status Refuse(absl::string_view client, int64_t use, absl::string_view what, int64_t quota,
                    absl::string_view name) {
  return QuotaRefusal(name,
                      absl::StrCat(client, " has ", use, " ", what, ", of at most ", quota, " (quota `", name, "`)"));
}

int64_t QuarterOf(int64_t count) { return std::max<int64_t>(1, count / kDefaultPart); }

}  // namespace

int64_t MostRows(const CapturePlan& plan) {
  if (plan.streams) return plan.max_budget;
  int64_t rows = 0;
  for (const CaptureEstimate::HookPoint& point : plan.Estimate().hook_points) rows = std::max(rows, point.rows);
  return rows;
}

int64_t QuotaOf(const ClientIdentity& client, const EngineOptions& options,
                std::optional<int64_t> ClientQuotas::*quota) {
  if ((client.quotas.*quota).has_value()) return *(client.quotas.*quota);
  return (options.default_quotas.*quota).value_or(-1);
}

int64_t MaxRunningCaptures(const ClientIdentity& client, const EngineOptions& options) {
  const int64_t quota = QuotaOf(client, options, &ClientQuotas::captures);
  return quota >= 0 ? quota : QuarterOf(options.max_captures);
}

int64_t MaxSlabs(const ClientIdentity& client, const EngineOptions& options) {
  const int64_t quota = QuotaOf(client, options, &ClientQuotas::slabs);
  return quota >= 0 ? quota : QuarterOf(options.slab_count);
}

int64_t MaxWaitingCaptures(const ClientIdentity& client, const EngineOptions& options) {
  const int64_t quota = QuotaOf(client, options, &ClientQuotas::waiting);
  return quota >= 0 ? quota : QuarterOf(options.max_captures);
}

absl::Status CheckQuotas(const ClientShare& share, const ClientUse& use, const CapturePlan& plan, int64_t rows,
                         const EngineOptions& options, absl::Time now) {
  const ClientIdentity& client = share.identity;
  const int64_t captures = QuotaOf(client, options, &ClientQuotas::captures);
  if (captures >= 0 && use.running + use.waiting >= captures) {
    return Refuse(client.name, use.running + use.waiting, "captures", captures, "captures");
  }
  if (const int64_t most = MaxWaitingCaptures(client, options); use.waiting >= most) {
    return WithRetryAfter(Refuse(client.name, use.waiting, "captures that wait", most, "waiting"), kQueueRetry);
  }
  const int64_t slabs = QuotaOf(client, options, &ClientQuotas::slabs);
  const int64_t needed = 2 * plan.group_slabs;
  if (slabs >= 0 && needed > slabs) {
    return QuotaRefusal("slabs", absl::StrCat("this capture needs ", needed, " slabs; ", client.name, " may have ",
                                              slabs, " (quota `slabs`)"));
  }
  if (const int64_t most = QuotaOf(client, options, &ClientQuotas::rows); most >= 0 && rows > most) {
    return QuotaRefusal("rows", absl::StrCat("this capture can bring ", rows, " rows; ", client.name, " may have ",
                                             most, " (quota `rows`); ask for fewer with `max_activations`"));
  }
  const int64_t feeds = QuotaOf(client, options, &ClientQuotas::feeds);
  if (plan.feed.has_value() && feeds >= 0 && use.feeds >= feeds) {
    return Refuse(client.name, use.feeds, "captures in feeds", feeds, "feeds");
  }
  if (const absl::Duration delay = share.bucket.Delay(now); delay > absl::ZeroDuration()) {
    return WithRetryAfter(QuotaRefusal("tokens_per_second",
                                       absl::StrCat(client.name, " has used up its ", share.bucket.tokens_per_second(),
                                                    " tokens a second (quota `tokens_per_second`; `burst_tokens` is ",
                                                    share.bucket.burst_tokens(), "); try again in ",
                                                    absl::FormatDuration(absl::Ceil(delay, absl::Milliseconds(1))))),
                          delay);
  }
  return absl::OkStatus();
}

bool MayRun(const ClientIdentity& client, const ClientUse& use, int64_t captures, int64_t slabs,
            const EngineOptions& options) {
  if (use.running == 0 && use.slabs == 0) return true;
  return use.running + captures <= MaxRunningCaptures(client, options) &&
         use.slabs + slabs <= MaxSlabs(client, options);
}

}  // namespace hookline
