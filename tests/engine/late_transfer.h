// A device whose copies end late and out of order. Each copy first fills its destination with rubbish; the rows get
// there only when an event that was recorded after the copy is waited for, in an order drawn from a seed. So an engine
// that hands over rows, or reuses slabs, before their event gives wrong rows.
#ifndef HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_
#define HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_

#include <memory>

#include "server/model/transfer.h"

namespace hookline {

std::unique_ptr<Transfer> MakeLateTransfer(uint64_t seed);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_
