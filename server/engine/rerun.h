// A batch that an executor has planned and could not finish, because its device failed: another one runs it again.
#ifndef HOOKLINE_SERVER_ENGINE_RERUN_H_
#define HOOKLINE_SERVER_ENGINE_RERUN_H_

#include <memory>
#include <vector>

#include "server/engine/delivery.h"

namespace hookline {

// Destroying it gives back slabs, so never do that with the scheduler's mutex held.
struct Rerun {
  // The deliveries of one batch; none is empty.
  std::vector<std::unique_ptr<Delivery>> deliveries;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_RERUN_H_
