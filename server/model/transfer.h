// Transfers a device's rows to host memory: selects rows on the device, and copies them asynchronously, in order before
// an event.
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

// Makes a thread work on one device, on a stream of its own. Destroying the binding waits for that stream.
class ThreadBinding {
 public:
  virtual ~ThreadBinding() = default;
};

// Row numbers, ascending, where the device can read them.
class RowIndex {
 public:
  virtual ~RowIndex() = default;
};

// Sums over single rows, one value for each row. A non-finite value makes both sums of its row non-finite, and squares
// that overflow float32 do so for the norm.
struct StagedSums {
  absl::Span<const float> sums;
  absl::Span<const float> norms;  // Euclidean
};

// Rows that were selected on the device and can be copied out in parts. Keeps the device's memory alive.
class StagedRows {
 public:
  virtual ~StagedRows() = default;
  // Drops the rows before `first` if that frees device memory. The row numbers of copies do not change.
  virtual absl::Status DropBefore(int64_t first) = 0;
  // Returns the conversion loss that no earlier call has returned: that of the rows copied since, or that of all rows
  // with the first ones. An event recorded after the copies must have been waited for.
  virtual ConversionLoss TakeLoss() = 0;
  // Returns the sums over staged rows first ... first + count - 1 if the device has computed them, otherwise nothing.
  // An event recorded after the rows' copies must have been waited for. The sums live as long as the staged rows.
  virtual StagedSums Sums(int64_t first, int64_t count) const = 0;
};

// Marks the end of every copy that was started before.
class TransferEvent {
 public:
  virtual ~TransferEvent() = default;
  // Blocks until the event is reached.
  virtual absl::Status Wait() = 0;
};

// Thread-safe.
class Transfer {
 public:
  virtual ~Transfer() = default;

  // Call it once on each thread that uses the device, before any other use, including this class's methods. The same
  // thread destroys the result. The thread's work is ordered after what was computed before the call.
  virtual absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() = 0;

  // Uploads `values` to the device without waiting. `uploaded` becomes (values.size()), int64.
  virtual absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) = 0;

  // Uploads `rows`, ascending, for any number of calls of Stage. RESOURCE_EXHAUSTED (device memory), INTERNAL.
  virtual absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) = 0;

  // Selects the first `rows` rows of `index` from `value` (any rows, layout.width), to be copied as `layout` says. The
  // work is queued after the computation of `value`, on the calling thread's stream. `value` is not written to later.
  // The staged rows take at most twice the bytes of the selected rows on the device. `index` can be destroyed before
  // the rows.
  virtual absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index,
                                                            int64_t rows, const RowLayout& layout) = 0;

  // Starts copying staged rows first ... first + count - 1 to `destination`, row-major. `rows` and `destination` must
  // live until an event recorded later was waited for. RESOURCE_EXHAUSTED (device memory), INTERNAL.
  virtual absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) = 0;

  virtual absl::StatusOr<std::unique_ptr<TransferEvent>> Record() = 0;

  // Computes next to nothing on the device and waits for it. OK means that an earlier error was not caused
  // by the device.
  virtual absl::Status Check() = 0;
};

// Makes the transfer of a device, as ModelInfo::device names it. On the CPU, copies have ended when Copy returns.
// Copies of one transfer run in order. Two transfers of one device do not wait for each other, and each can copy rows
// that the other staged.
absl::StatusOr<std::unique_ptr<Transfer>> MakeTransfer(const std::string& device);

// Allocates the host memory to which `device` copies fastest: pinned for an accelerator, where LibTorch rounds up to a
// power of two. It is aligned to a page. RESOURCE_EXHAUSTED with the bytes.
absl::StatusOr<std::shared_ptr<uint8_t>> AllocateHostMemory(int64_t bytes, const std::string& device);

// Returns the bytes that LibTorch has allocated on `device`; 0 on the CPU.
int64_t DeviceMemoryBytes(const std::string& device);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_TRANSFER_H_
