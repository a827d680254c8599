// Plays a recording back as the capture that it was made from: the proto RecordingService.ReadRecording. Needs
// no model.
#ifndef HOOKLINE_SERVER_RECORDER_REPLAY_H_
#define HOOKLINE_SERVER_RECORDER_REPLAY_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "server/capture/capture.h"
#include "server/recorder/replay_plan.h"
#include "server/recording/reader.h"

namespace hookline {

// The services that a replay needs from its caller.
struct ReplayHost {
  // Runs an action soon on another thread, which may wait for the disk. A replay posts one action at a time, and each
  // is short: a slice of a shard's check, or one message's rows.
  std::function<void(std::function<void()>)> post;
  // An event is ready after Next returned none. Called from the threads of `post`; must not block.
  std::function<void()> on_ready;
};

// Starts a replay. It reads the next message while the one before is being sent, and so holds two. Shards are checked
// before their rows are sent (see RowRead). INVALID_ARGUMENT, naming the field, as the proto says; RESOURCE_EXHAUSTED:
// other reads hold too much memory.
absl::StatusOr<std::shared_ptr<Capture>> StartReplay(std::shared_ptr<const RecordingReader> recording,
                                                     const ReplayRequest& request, ReplayHost host);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDER_REPLAY_H_
