// Counts the calls of all clients for Prometheus: how they end, how long they take, how soon their first row leaves,
// and what quotas refuse. The labels are bounded: methods of the protocol, codes of gRPC, quotas, and clients of the
// auth file.
#ifndef HOOKLINE_SERVER_METRICS_CALL_METRICS_H_
#define HOOKLINE_SERVER_METRICS_CALL_METRICS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "prometheus/metric_family.h"
#include "server/capture/client_identity.h"
#include "server/engine/snapshot.h"

namespace hookline {

// Thread-safe. `method` is one of the protocol's, as HTTP/2 names it: /package.Service/Method.
class CallMetrics {
 public:
  void Started(absl::string_view method);
  // Records that a call's first row has been handed to gRPC, `duration` after the call came.
  void FirstRow(absl::string_view method, absl::Duration duration);
  // Records that a message of a capture has been handed to gRPC, `duration` after its rows were ready.
  void Written(absl::string_view method, absl::Duration duration);
  // `code` is the name of the status code with which the call ends.
  void Ended(absl::string_view method, absl::string_view code, absl::Duration duration);
  // Records that a call was refused over the client's quota.
  void Refused(absl::string_view quota, const ClientIdentity& client);

  std::vector<prometheus::MetricFamily> Collect() const;

 private:
  struct Method {
    int64_t started = 0;
    std::map<std::string, int64_t> ended;  // by code
    Histogram seconds;
    Histogram first_row_seconds;
    Histogram wire_seconds;
  };
  // The quota, the client or `unnamed`, and whether the auth file names the client.
  using Refusal = std::tuple<std::string, std::string, bool>;

  Method& Find(absl::string_view method) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::map<std::string, Method, std::less<>> methods_ ABSL_GUARDED_BY(mutex_);
  std::map<Refusal, int64_t> refusals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_METRICS_CALL_METRICS_H_
