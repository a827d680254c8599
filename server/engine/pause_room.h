// Room on a device for a forward pass that waits for its client.
#ifndef HOOKLINE_SERVER_ENGINE_PAUSE_ROOM_H_
#define HOOKLINE_SERVER_ENGINE_PAUSE_ROOM_H_

#include <cstdint>
#include <functional>
#include <utility>

namespace hookline {

// Gives the room back when it is destroyed, which calls the scheduler: never destroy one with a lock held.
class PauseRoom {
 public:
  PauseRoom(int64_t positions, std::function<void()> give_back)
      : positions_(positions), give_back_(std::move(give_back)) {}
  ~PauseRoom() { give_back_(); }
  PauseRoom(const PauseRoom&) = delete;
  PauseRoom& operator=(const PauseRoom&) = delete;

  // The positions of all sequences and variants of the pass, padding included.
  int64_t positions() const { return positions_; }

 private:
  const int64_t positions_;
  const std::function<void()> give_back_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_PAUSE_ROOM_H_
