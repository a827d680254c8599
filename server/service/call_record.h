// Reports a call to operators: by one line of the log when it has ended, and in the metrics.
//
//   CallRecord record(metrics, "/hookline.v1.CaptureService/Capture", "10.0.0.7");
//   record.SetClient(client.identity);
//   record.AddRows(512);
//   record.End(absl::OkStatus());
#ifndef HOOKLINE_SERVER_SERVICE_CALL_RECORD_H_
#define HOOKLINE_SERVER_SERVICE_CALL_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/capture/capture.h"
#include "server/capture/client_identity.h"
#include "server/metrics/call_metrics.h"

namespace hookline {

// A value that passes from owner to owner, of whom only one writes to it. Not thread-safe.
class CallRecord {
 public:
  // Makes a record that belongs to no call and reports nothing.
  CallRecord() = default;
  // Begins the record of a call. `metrics` may be null; otherwise it must outlive the record and its copies. `method`
  // is /package.Service/Method and lives for ever; `peer` is the address without a port.
  CallRecord(CallMetrics* metrics, absl::string_view method, std::string peer);

  // Sets the calling client. Without it the log names no client.
  void SetClient(const ClientIdentity& client) { client_ = client; }

  // Counts rows that leave for the client. The first rows also set the time of the first row.
  void AddRows(int64_t rows);
  // Counts bytes that leave for the client: messages, and values in shared memory.
  void AddBytes(int64_t bytes) { bytes_ += bytes; }
  // Adds the time between a message's rows being ready and the message having left.
  void AddWireTime(absl::Duration duration);
  // Sets the times of a capture.
  void SetEnd(const CaptureEnded& ended);

  // Reports that the call has ended with `status`. Call it once, last.
  void End(const absl::Status& status) const;

 private:
  // Only captures have these.
  struct CaptureTimes {
    absl::Duration queue;
    absl::Duration forward;
    absl::Duration copy;
  };

  CallMetrics* metrics_ = nullptr;
  absl::string_view method_;  // empty: the record belongs to no call
  std::string peer_;
  absl::Time start_;
  std::optional<ClientIdentity> client_;
  int64_t rows_ = 0;
  int64_t bytes_ = 0;
  std::optional<absl::Duration> first_row_;
  absl::Duration wire_;
  std::optional<CaptureTimes> times_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_CALL_RECORD_H_
