// A device's way to host memory: selecting rows on the device, and copies that may end later, in order behind an event.
//
//   const auto binding = transfer->BindThread();                                // once in each thread
//   std::shared_ptr<RowIndex> index = transfer->MakeIndex({3, 5, 8});           // once for each forward pass
//   std::shared_ptr<StagedRows> rows = transfer->Stage(value, *index, 3, layout);
//   transfer->Copy(*rows, 0, 3, slab);                                          // from any one thread at a time
//   std::unique_ptr<TransferEvent> event = transfer->Record();
//   event->Wait();                                                              // the slab holds the rows
#ifndef HOOKLINE_SERVER_MODEL_TRANSFER_H_
#define HOOKLINE_SERVER_MODEL_TRANSFER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/row_layout.h"
#include "server/model/conversion_loss.h"

namespace at {
class Tensor;
}

namespace hookline {

// Makes a thread work on one device, on a stream of its own, until it is destroyed, which waits for that stream.
class ThreadBinding {
 public:
  virtual ~ThreadBinding() = default;
};

// Numbers of rows, ascending, where the device can read them.
class RowIndex {
 public:
  virtual ~RowIndex() = default;
};

// Sums over single rows, one value for each. A value of a row that is not finite makes both of its sums so, and squares
// that overflow float32 its norm.
struct StagedSums {
  absl::Span<const float> sums;
  absl::Span<const float> norms;  // Euclidean
};

// Rows that were chosen on the device and may be copied out, part by part. Keeps the device's memory alive.
class StagedRows {
 public:
  virtual ~StagedRows() = default;
  // Lets go of rows before `first` where that frees device memory. Copies count rows as before.
  virtual absl::Status DropBefore(int64_t first) = 0;
  // Returns what the conversion of the rows has lost, as far as no earlier call has told: of the rows copied since, or
  // of all with the first ones. An event recorded after the copies must have been waited for.
  virtual ConversionLoss TakeLoss() = 0;
  // Returns the sums over staged rows first ... first + count - 1 where the device has computed them, otherwise
  // nothing. An event recorded after the rows' copies must have been waited for. They live as long as the staged rows.
  virtual StagedSums Sums(int64_t first, int64_t count) const = 0;
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

  // Call it once on each thread that uses the device, this class's methods included, before it does. The same thread
  // destroys the result. What the thread computes is ordered behind what was computed before the call.
  virtual absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() = 0;

  // Brings `values` to the device without waiting for it. `uploaded` becomes (values.size()), int64.
  virtual absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) = 0;

  // `rows`, ascending, for as many calls of Stage as there are. RESOURCE_EXHAUSTED (device memory), INTERNAL.
  virtual absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) = 0;

  // Chooses the first `rows` rows of `index` out of `value` (any rows, layout.width), to be copied as `layout` says.
  // The work is queued behind what computes `value`, on the calling thread's stream. `value` is not written to later.
  // The kept rows take on the device at most twice the bytes of the rows chosen. `index` may be destroyed before the
  // rows.
  virtual absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index,
                                                            int64_t rows, const RowLayout& layout) = 0;

  // Starts copying staged rows first ... first + count - 1 to `destination`, row-major. `rows` and `destination` must
  // live until an event recorded later was waited for. RESOURCE_EXHAUSTED (device memory), INTERNAL.
  virtual absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) = 0;

  virtual absl::StatusOr<std::unique_ptr<TransferEvent>> Record() = 0;

  // Computes next to nothing on the device and waits for it: OK says that an error before was not the device's own.
  virtual absl::Status Check() = 0;
};

// Makes the transfer of a device, as ModelInfo::device names it. On the CPU copies have ended when Copy returns. Copies
// of one transfer run in their order; two transfers of one device do not wait for each other, and each copies rows that
// the other staged.
absl::StatusOr<std::unique_ptr<Transfer>> MakeTransfer(const std::string& device);

// Host memory that `device` copies to fastest: pinned for an accelerator, where LibTorch takes the next power of two.
// Aligned to a page. RESOURCE_EXHAUSTED with the bytes.
absl::StatusOr<std::shared_ptr<uint8_t>> AllocateHostMemory(int64_t bytes, const std::string& device);

// Bytes that LibTorch has allocated on `device`; 0 on the CPU.
int64_t DeviceMemoryBytes(const std::string& device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TRANSFER_H_
