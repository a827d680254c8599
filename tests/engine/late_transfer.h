// A device whose copies end late and out of step. A copy's destination is filled with rubbish first and gets its rows
// only when an event recorded after it is waited for, in an order drawn by a seed; so rows that are handed over, or
// slabs that are used again, before their event would be wrong rows.
#ifndef HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_
#define HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_

#include <memory>

#include "server/model/transfer.h"

namespace hookline {

std::unique_ptr<Transfer> MakeLateTransfer(uint64_t seed);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_ENGINE_LATE_TRANSFER_H_
