#include "server/service/call_record.h"

#include <utility>
#include <vector>

#include "server/base/quota_refusal.h"
#include "server/base/steady.h"
#include "server/service/event_log.h"

namespace hookline {

CallRecord::CallRecord(CallMetrics* metrics, absl::string_view method, std::string peer)
    : metrics_(metrics), method_(method), peer_(std::move(peer)), start_(SteadyNow()) {
  if (metrics_ != nullptr) metrics_->Started(method_);
}

void CallRecord::AddRows(int64_t rows) {
  rows_ += rows;
  if (first_row_.has_value() || rows == 0) return;
  first_row_ = SteadyNow() - start_;
  if (metrics_ != nullptr) metrics_->FirstRow(method_, *first_row_);
}

void CallRecord::AddWireTime(absl::Duration duration) {
  wire_ += duration;
  if (metrics_ != nullptr) metrics_->Written(method_, duration);
}

void CallRecord::SetEnd(const CaptureEnded& ended) {
  times_ = CaptureTimes{ended.queue_time, ended.forward_time, ended.copy_time};
}

void CallRecord::End(const absl::Status& status) const {
  if (method_.empty()) return;
  const absl::Duration duration = SteadyNow() - start_;
  const std::string code = absl::StatusCodeToString(status.code());
  if (metrics_ != nullptr) {
    metrics_->Ended(method_, code, duration);
    const std::string quota = RefusingQuota(status);
    if (!quota.empty() && client_.has_value()) metrics_->Refused(quota, *client_);
  }
  std::vector<LogField> fields;
  if (client_.has_value()) fields.push_back({"client", client_->name});
  fields.push_back({"peer", peer_});
  fields.push_back({"method", std::string(method_)});
  fields.push_back({"code", code});
  fields.push_back({"rows", rows_});
  fields.push_back({"bytes", bytes_});
  fields.push_back({"seconds", absl::ToDoubleSeconds(duration)});
  if (first_row_.has_value()) {
    fields.push_back({"first_row_seconds", absl::ToDoubleSeconds(*first_row_)});
    fields.push_back({"wire_seconds", absl::ToDoubleSeconds(wire_)});
  }
  if (times_.has_value()) {
    fields.push_back({"queue_seconds", absl::ToDoubleSeconds(times_->queue)});
    fields.push_back({"forward_seconds", absl::ToDoubleSeconds(times_->forward)});
    fields.push_back({"copy_seconds", absl::ToDoubleSeconds(times_->copy)});
  }
  LogEvent("call", fields);
}

}  // namespace hookline
