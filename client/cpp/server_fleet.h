// The servers of one capture: which of them can be used now, what runs on each, and whether they are still there.
#ifndef HOOKLINE_CLIENT_CPP_SERVER_FLEET_H_
#define HOOKLINE_CLIENT_CPP_SERVER_FLEET_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/capture_call.h"
#include "client/cpp/client.h"
#include "hookline/v1/dataset_service.pb.h"
#include "server/base/steady.h"

namespace hookline::client {

// A server whose call has sent nothing for this long is asked whether it is still there; the Python client's `Sharing`
// has the same numbers.
inline constexpr absl::Duration kSilence = absl::Seconds(5);
// The longest time that a server may take to answer that, the time-out of a fleet's clients. After that its blocks run
// elsewhere.
inline constexpr absl::Duration kAnswerTime = absl::Seconds(10);

struct NamedServer {
  std::string address;  // for errors
  std::unique_ptr<Client> client;
};

// Returns whether a call failed because its server is away or shutting down, which cancels the calls that it still
// runs. False for a capture that an operator stopped.
bool IsGone(const absl::Status& status);

// Returns the error with the address of its server added, unless the message has it already.
absl::Status OfServer(const absl::Status& status, const std::string& address);

// Servers are identified by their index. A server is admitted once it has answered and holds the same model and dataset
// as the first that answered. A server that fails is left alone for the delays of resumable_capture.h and then asked
// again. Thread-safe.
class ServerFleet {
 public:
  // `dataset` is empty if none is read. `on_failed` is called at most once, from any thread and without a lock: a
  // server answers with an error, the servers do not hold the same, or each has failed more than kMaxReconnects times.
  ServerFleet(std::vector<NamedServer> servers, std::string model, std::string dataset, absl::Duration silence,
              std::function<void(absl::Status)> on_failed);
  // All calls of other methods must have returned, which they do soon after End.
  ~ServerFleet();
  ServerFleet(const ServerFleet&) = delete;
  ServerFleet& operator=(const ServerFleet&) = delete;

  size_t size() const { return servers_.size(); }
  Client& client(size_t server) const { return *servers_[server].client; }
  const std::string& address(size_t server) const { return servers_[server].address; }
  // Returns the dataset that the servers hold, once one is admitted.
  v1::Dataset dataset() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Waits until the server can be used, and asks it whether it is there if that is not known. Returns false after End.
  bool WaitUntilUsable(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until each server has answered or failed to; callers of WaitUntilUsable ask them. Returns the servers that
  // did not answer, or the first one's error if no server answered.
  absl::StatusOr<std::vector<std::pair<size_t, absl::Status>>> WaitUntilAnswered() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for a server that can be used and returns it.
  absl::StatusOr<size_t> AnyUsable() ABSL_LOCKS_EXCLUDED(mutex_);

  // Returns whether another call can succeed after one on this server failed with `error`, and notes when this server
  // may be asked again. Returns false after End.
  bool MayGoOn(size_t server, const absl::Status& error) ABSL_LOCKS_EXCLUDED(mutex_);

  // Cancels all calls; methods that wait return. Idempotent.
  void End() ABSL_LOCKS_EXCLUDED(mutex_);

  // Registers a call that runs on a server for as long as this object lives. The call is cancelled by End, and if the
  // server is silent and does not answer. Belongs to one thread.
  class Call {
   public:
    Call(ServerFleet* fleet, size_t server, CaptureCall* call);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // Blocks for the call's next event. UNAVAILABLE if the call was cancelled because the server did not answer.
    absl::StatusOr<std::optional<CaptureEvent>> Next();

   private:
    ServerFleet* const fleet_;
    const size_t server_;
    CaptureCall* const call_;
    const int64_t id_;
  };

 private:
  struct State {
    int failures = 0;  // since it last sent rows
    absl::Time retry_at = absl::InfinitePast();
    bool is_admitted = false;
    bool is_asked = false;  // is being asked whether it is there
    absl::Status error;     // the last error
  };
  struct Running {
    size_t server = 0;
    CaptureCall* call = nullptr;
    absl::Time last_sign;
    bool is_lost = false;
  };

  int64_t Enter(size_t server, CaptureCall* call) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Ask(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckSame(const std::string& what, size_t server, const std::string& fingerprint)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Admit(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);
  void Lose(size_t server, const absl::Status& error) ABSL_LOCKS_EXCLUDED(mutex_);
  void Fail(const absl::Status& error) ABSL_LOCKS_EXCLUDED(mutex_);
  void Watch(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);
  bool IsSilent(size_t server) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Probe(size_t server) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<NamedServer> servers_;
  const std::string model_;
  const std::string dataset_name_;
  const absl::Duration silence_;
  const std::function<void(absl::Status)> on_failed_;

  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;
  std::vector<State> states_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::pair<size_t, std::string>> first_ ABSL_GUARDED_BY(mutex_);  // server and fingerprint
  v1::Dataset dataset_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, Running> calls_ ABSL_GUARDED_BY(mutex_);
  int64_t next_call_ ABSL_GUARDED_BY(mutex_) = 0;
  bool has_failed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> watchers_;  // one for each server, since probing one that hangs takes long
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_SERVER_FLEET_H_
