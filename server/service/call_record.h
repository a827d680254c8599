// Tells operators of a call: by one line of the log when it has ended, and in the metrics.
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

// A value of its owner's, who moves it on: one at a time writes it. Not thread-safe.
class CallRecord {
 public:
  // Makes a record that belongs to no call and tells nobody.
  CallRecord() = default;
  // The call begins now. `metrics` may be null; otherwise it must outlive the record, and the copies of it. `method`
  // is /package.Service/Method and lives for ever; `peer` is the address without a port.
  CallRecord(CallMetrics* metrics, absl::string_view method, std::string peer);

  // Sets who calls. Without it the log names no client: nobody was recognised.
  void SetClient(const ClientIdentity& client) { client_ = client; }

  // Counts rows of values that leave for the client, the first of them now.
  void AddRows(int64_t rows);
  // Counts bytes that leave for the client: messages, and values in shared memory.
  void AddBytes(int64_t bytes) { bytes_ += bytes; }
  // A message with rows has left, `duration` after they were ready.
  void AddWireTime(absl::Duration duration);
  // Sets where the time of a capture went.
  void SetEnd(const CaptureEnded& ended);

  // The call ends with `status`. Called once, last.
  void End(const absl::Status& status) const;

 private:
  // These only captures have.
  struct CaptureTimes {
    absl::Duration queue;
    absl::Duration forward;
    absl::Duration copy;
  };

  CallMetrics* metrics_ = nullptr;
  absl::string_view method_;  // empty: of no call
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
