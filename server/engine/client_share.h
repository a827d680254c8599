// One client's share of the device: how many tokens it may put into batches before it is the others' turn, and at
// what rate.
#ifndef HOOKLINE_SERVER_ENGINE_CLIENT_SHARE_H_
#define HOOKLINE_SERVER_ENGINE_CLIENT_SHARE_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "server/capture/client_identity.h"

namespace hookline {

// Tokens that arrive at a rate and may be saved up to a burst. Taking tokens may overdraw the bucket, which then fills
// up from below zero.
class TokenBucket {
 public:
  // A bucket without a limit.
  TokenBucket() = default;

  // Changes the limits; saved tokens stay, up to the new burst. A rate of 0 means no limit, a burst of 0 the tokens of
  // ten seconds.
  void SetLimits(int64_t tokens_per_second, int64_t burst_tokens, absl::Time now);

  // The time until there are tokens; zero if there are some.
  absl::Duration Delay(absl::Time now) const;
  bool IsFull(absl::Time now) const;
  void Take(int64_t tokens, absl::Time now);

  int64_t tokens_per_second() const { return static_cast<int64_t>(rate_); }
  int64_t burst_tokens() const { return static_cast<int64_t>(burst_); }

 private:
  double LevelAt(absl::Time now) const;

  double rate_ = 0;  // 0: no limit
  double burst_ = 0;
  double level_ = 0;
  absl::Time updated_ = absl::InfinitePast();
};

struct ClientShare {
  ClientShare() = default;
  explicit ClientShare(ClientIdentity client) : identity(std::move(client)) {}

  ClientIdentity identity;
  // Tokens that the client may still put into batches before it is another's turn; below zero it has overdrawn.
  int64_t deficit = 0;
  TokenBucket bucket;
  int64_t tokens = 0;  // those that entered batches

  // These are valid only while a batch is formed.
  bool is_earning = false;
  bool is_granted = false;
  int64_t batch_flows = 0;  // its flows that may go into the batch
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_CLIENT_SHARE_H_
