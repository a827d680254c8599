// A device's way to host memory: selecting rows on the device, and copies that may end later, in order behind an event.
//
//   StagedRows rows = transfer->Stage(value, index, layout);   // on the executor's thread
//   transfer->Copy(rows, 0, 100, slab);                                  // from any one thread at a time
//   std::unique_ptr<TransferEvent> event = transfer->Record();
//   event->Wait();                                                       // the slab holds the rows
#ifndef HOOKLINE_SERVER_MODEL_TRANSFER_H_
#define HOOKLINE_SERVER_MODEL_TRANSFER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/base/row_layout.h"
#include "server/model/conversion_loss.h"

namespace at {
class Tensor;
}

namespace hookline {

// Rows that were chosen on the device and may be copied out, part by part. Keeps the device's memory alive.
class StagedRows {
 public:
  virtual ~StagedRows() = default;
  // Lets go of rows before `first` where that frees device memory. Copies count rows as before.
  virtual absl::Status DropBefore(int64_t first) = 0;
  // Returns what the conversion of the rows has lost, as far as no earlier call has told: of the rows copied since, or
  // of all with the first ones. An event recorded after the copies must have been waited for.
  virtual ConversionLoss TakeLoss() = 0;
};

// The end of every copy that was started before.
class TransferEvent {
 public:
  virtual ~TransferEvent() = default;
  // Blocks until it is reached.
  virtual absl::Status Wait() = 0;
};

// Thread-safe.
class Transfer {
 public:
  virtual ~Transfer() = default;

  // Chooses rows `index` (host memory, `rows` entries, ascending) of `value` (any rows, layout.width), to be copied as
  // `layout` says. The work is queued behind what computes `value`, on the calling thread's stream. `value` is not
  // written to later.
  virtual absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const int64_t* index, int64_t rows,
                                                            const RowLayout& layout) = 0;

  // Starts copying staged rows first ... first + count - 1 to `destination`, row-major. `rows` and `destination` must
  // live until an event recorded later was waited for. RESOURCE_EXHAUSTED (device memory), INTERNAL.
  virtual absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) = 0;

  virtual absl::StatusOr<std::unique_ptr<TransferEvent>> Record() = 0;
};

// Makes the transfer of a device, as ModelInfo::device names it. On the CPU copies have ended when Copy returns.
absl::StatusOr<std::unique_ptr<Transfer>> MakeTransfer(const std::string& device);

// Host memory that `device` copies to fastest: pinned for an accelerator. Aligned to a page.
absl::StatusOr<std::shared_ptr<uint8_t>> AllocateHostMemory(int64_t bytes, const std::string& device);

// Bytes that LibTorch has allocated on `device`; 0 on the CPU.
int64_t DeviceMemoryBytes(const std::string& device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TRANSFER_H_
