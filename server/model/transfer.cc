#include "server/model/transfer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/base/status.h"
#include "server/base/steady.h"
#include "server/model/catch_torch.h"
#include "server/model/pack_rows.h"
#include "server/model/scalar_type.h"
#include "server/model/torch_compat.h"

namespace hookline {
namespace {

// The time between two polls of an event. CUDA's own wait spins on a core for as long as the device computes.
constexpr absl::Duration kEventPoll = absl::Microseconds(50);
// Copies of a few slabs end within this time, so polling at once is faster than sleeping.
constexpr absl::Duration kEventSpin = absl::Microseconds(50);

// For fewer bytes a core of the host computes the sums sooner than a device is told to.
constexpr size_t kLeastSummedBytes = size_t{256} << 10;

bool IsRun(const std::vector<int64_t>& index, size_t first, size_t count) {
  return count == 0 || index[first + count - 1] - index[first] == static_cast<int64_t>(count) - 1;
}

class HostIndex : public RowIndex {
 public:
  explicit HostIndex(std::vector<int64_t> index) : rows(std::move(index)) {}
  const std::vector<int64_t> rows;
};

// Rows of a tensor in host memory. They are selected while they are copied, straight to their destination.
class HostRows : public StagedRows {
 public:
  HostRows(at::Tensor value, std::vector<int64_t> index, const RowLayout& layout)
      : value_(std::move(value)), index_(std::move(index)), layout_(layout), type_(ScalarTypeOf(layout.dtype)) {}

  // If less than half of the tensor is still wanted, replaces it by the wanted rows.
  absl::Status DropBefore(int64_t first) override {
    return CatchTorch([&] {
      c10::InferenceMode inference;
      const int64_t left = static_cast<int64_t>(index_.size()) - first;
      if (2 * left >= value_.size(0) || left == 0) return absl::OkStatus();
      at::Tensor chosen = at::from_blob(index_.data() + first, {left}, at::kLong);
      value_ = value_.index_select(0, chosen);
      for (int64_t i = 0; i < left; ++i) index_[first + i] = i;
      return absl::OkStatus();
    });
  }

  ConversionLoss TakeLoss() override { return std::exchange(loss_, {}); }
  StagedSums Sums(int64_t, int64_t) const override { return {}; }

  void CopyTo(int64_t first, int64_t count, uint8_t* destination) {
    c10::InferenceMode inference;
    if (!layout_.is_plain()) {
      const PackedRows packed = PackRows(Chosen(first, count), layout_);
      std::memcpy(destination, packed.bytes.data_ptr(), static_cast<size_t>(count * layout_.bytes()));
      AddLoss(packed.loss);
      return;
    }
    const int64_t width = value_.size(1);
    if (value_.scalar_type() == type_ && value_.stride(1) == 1) {
      const int64_t item = static_cast<int64_t>(value_.element_size());
      const uint8_t* base = static_cast<const uint8_t*>(value_.data_ptr());
      const int64_t stride = value_.stride(0) * item;
      const int64_t row_bytes = width * item;
      if (stride == row_bytes && IsRun(index_, first, count)) {
        std::memcpy(destination, base + index_[first] * stride, count * row_bytes);
        return;
      }
      for (int64_t i = 0; i < count; ++i, destination += row_bytes) {
        std::memcpy(destination, base + index_[first + i] * stride, row_bytes);
      }
      return;
    }
    at::Tensor out = at::from_blob(destination, {count, width}, type_);
    const at::Tensor chosen = Chosen(first, count);
    out.copy_(chosen);
    if (type_ == at::kHalf) AddLoss(OverflowLoss(chosen, out));
  }

 private:
  at::Tensor Chosen(int64_t first, int64_t count) {
    if (IsRun(index_, first, count)) return value_.narrow(0, index_[first], count);
    return value_.index_select(0, at::from_blob(index_.data() + first, {count}, at::kLong));
  }

  void AddLoss(const at::Tensor& loss) {
    if (!loss.defined()) return;
    const ConversionLoss more = ReadLoss(loss.data_ptr<double>());
    loss_.error_squares += more.error_squares;
    loss_.value_squares += more.value_squares;
    loss_.overflows += more.overflows;
    loss_.truncated_rows += more.truncated_rows;
  }

  at::Tensor value_;
  std::vector<int64_t> index_;
  const RowLayout layout_;
  const at::ScalarType type_;
  ConversionLoss loss_;
};

class ReachedEvent : public TransferEvent {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
};

class HostTransfer : public Transfer {
 public:
  // Without this, a new thread's first product would be computed by as many threads as there are cores.
  absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() override {
    at::internal::lazy_init_num_threads();
    return std::make_unique<ThreadBinding>();
  }

  absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) override {
    return CatchTorch([&] {
      *uploaded = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
      std::copy(values.begin(), values.end(), uploaded->data_ptr<int64_t>());
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) override {
    return std::make_shared<HostIndex>(std::move(rows));
  }

  absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index, int64_t rows,
                                                    const RowLayout& layout) override {
    const auto begin = static_cast<const HostIndex&>(index).rows.begin();
    return std::make_shared<HostRows>(value, std::vector<int64_t>(begin, begin + rows), layout);
  }

  absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) override {
    return CatchTorch([&] {
      static_cast<HostRows&>(rows).CopyTo(first, count, destination);
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::unique_ptr<TransferEvent>> Record() override { return std::make_unique<ReachedEvent>(); }

  absl::Status Check() override { return absl::OkStatus(); }
};

// Row numbers on the host, to see whether they are consecutive, and on the device unless all are.
class DeviceIndex : public RowIndex {
 public:
  DeviceIndex(std::vector<int64_t> rows, at::Tensor on_device)
      : rows_(std::move(rows)), on_device_(std::move(on_device)) {}

  at::Tensor Choose(const at::Tensor& value, int64_t rows) const {
    if (rows > 0 && IsRun(rows_, 0, static_cast<size_t>(rows))) return value.narrow(0, rows_[0], rows);
    return value.index_select(0, on_device_.narrow(0, 0, rows));
  }

 private:
  const std::vector<int64_t> rows_;
  const at::Tensor on_device_;
};

// Rows chosen and converted on an accelerator.
class DeviceRows : public StagedRows {
 public:
  // For `loss` see PackedRows; it is undefined if nothing can be lost. `sums` and `norms`, float32 of each row, are
  // undefined if the device does not compute them.
  DeviceRows(at::Tensor rows, at::Tensor loss, at::Tensor sums, at::Tensor norms, c10::Event ready)
      : rows_(std::move(rows)),
        loss_(std::move(loss)),
        sums_(std::move(sums)),
        norms_(std::move(norms)),
        ready_(std::move(ready)) {}

  // The staged rows belong to this capture alone, so they are kept whole until the last one has left.
  absl::Status DropBefore(int64_t) override { return absl::OkStatus(); }

  ConversionLoss TakeLoss() override {
    if (!host_loss_.defined()) return {};
    const ConversionLoss loss = ReadLoss(host_loss_.data_ptr<double>());
    host_loss_.zero_();
    return loss;
  }

  StagedSums Sums(int64_t first, int64_t count) const override {
    if (!host_sums_.defined()) return {};
    return {{host_sums_.data_ptr<float>() + first, static_cast<size_t>(count)},
            {host_norms_.data_ptr<float>() + first, static_cast<size_t>(count)}};
  }

  // Starts the copies of the loss and the sums on the current stream, once.
  void CopyFacts() {
    CopyOut(loss_, host_loss_);
    CopyOut(sums_, host_sums_);
    CopyOut(norms_, host_norms_);
  }

  const at::Tensor& rows() const { return rows_; }
  const c10::Event& ready() const { return ready_; }

 private:
  // `from` stays, because its memory must not be reused before the copy has ended.
  static void CopyOut(const at::Tensor& from, at::Tensor& pinned) {
    if (!from.defined() || pinned.defined()) return;
    pinned = at::empty(from.sizes(), at::TensorOptions().dtype(from.scalar_type()).pinned_memory(true));
    pinned.copy_(from, /*non_blocking=*/true);
  }

  const at::Tensor rows_;
  const at::Tensor loss_;
  const at::Tensor sums_;
  const at::Tensor norms_;
  // In pinned memory, from the first copy on.
  at::Tensor host_loss_;
  at::Tensor host_sums_;
  at::Tensor host_norms_;
  const c10::Event ready_;
};

class DeviceEvent : public TransferEvent {
 public:
  explicit DeviceEvent(c10::Event event) : event_(std::move(event)) {}

  absl::Status Wait() override {
    return CatchTorch([&] {
      const absl::Time spin_end = SteadyNow() + kEventSpin;
      while (!event_.query()) {
        if (SteadyNow() >= spin_end) absl::SleepFor(kEventPoll);
      }
      return absl::OkStatus();
    });
  }

 private:
  const c10::Event event_;
};

class DeviceBinding : public ThreadBinding {
 public:
  explicit DeviceBinding(c10::Stream stream) : device_(stream.device()), stream_(stream), bound_(stream) {}
  ~DeviceBinding() override {
    // Errors were already reported where the work was waited for.
    (void)CatchTorch([&] {
      bound_.synchronize();
      return absl::OkStatus();
    });
  }

 private:
  // Without this guard, every use of an event sets the device back to 0, which makes a context there.
  const c10::DeviceGuard device_;
  const c10::StreamGuard stream_;
  const c10::Stream bound_;
};

class DeviceTransfer : public Transfer {
 public:
  explicit DeviceTransfer(c10::Device device)
      : device_(device),
        guard_(device.type()),
        compute_stream_(guard_.getStreamFromGlobalPool(device, /*isHighPriority=*/false)),
        copy_stream_(guard_.getStreamFromGlobalPool(device, /*isHighPriority=*/true)) {}

  absl::StatusOr<std::unique_ptr<ThreadBinding>> BindThread() override {
    std::unique_ptr<ThreadBinding> binding;
    RETURN_IF_ERROR(CatchTorch([&] {
      binding = std::make_unique<DeviceBinding>(compute_stream_);
      // Models are loaded on the default stream.
      c10::Event loaded(device_.type());
      loaded.record(guard_.getDefaultStream(device_));
      loaded.block(compute_stream_);
      return absl::OkStatus();
    }));
    return binding;
  }

  absl::Status Upload(absl::Span<const int64_t> values, at::Tensor* uploaded) override {
    return CatchTorch([&] {
      *uploaded = Upload<int64_t>(values);
      return absl::OkStatus();
    });
  }

  // int32 takes half the bytes of int64 and suffices: a batch has fewer than 2^31 rows.
  absl::StatusOr<std::shared_ptr<RowIndex>> MakeIndex(std::vector<int64_t> rows) override {
    std::shared_ptr<RowIndex> index;
    RETURN_IF_ERROR(CatchTorch([&] {
      at::Tensor on_device;
      if (!IsRun(rows, 0, rows.size())) on_device = Upload<int32_t>(rows);
      index = std::make_shared<DeviceIndex>(std::move(rows), std::move(on_device));
      return absl::OkStatus();
    }));
    return index;
  }

  absl::StatusOr<std::shared_ptr<StagedRows>> Stage(const at::Tensor& value, const RowIndex& index, int64_t rows,
                                                    const RowLayout& layout) override {
    std::shared_ptr<StagedRows> staged;
    RETURN_IF_ERROR(CatchTorch([&] {
      c10::InferenceMode inference;
      at::Tensor chosen = static_cast<const DeviceIndex&>(index).Choose(value, rows);
      at::Tensor loss, sums, norms;
      if (layout.is_plain()) {
        // The kept rows must not keep the whole batch's tensor alive, unless they are most of it.
        const bool is_small = 2 * chosen.nbytes() < chosen.storage().nbytes();
        const at::Tensor from = chosen;
        chosen = from.to(ScalarTypeOf(layout.dtype), /*non_blocking=*/false, /*copy=*/is_small).contiguous();
        if (layout.dtype == Dtype::kFloat16) loss = OverflowLoss(from, chosen);
        if (chosen.nbytes() >= kLeastSummedBytes) {
          sums = at::sum(chosen, {1}, /*keepdim=*/false, at::kFloat);
          norms = at::linalg_vector_norm(chosen, /*ord=*/2, {1}, /*keepdim=*/false, at::kFloat);
        }
      } else {
        PackedRows packed = PackRows(chosen, layout);
        chosen = std::move(packed.bytes);
        loss = std::move(packed.loss);
      }
      c10::Event ready(device_.type());
      ready.record(guard_.getStream(device_));
      staged = std::make_shared<DeviceRows>(std::move(chosen), std::move(loss), std::move(sums), std::move(norms),
                                            std::move(ready));
      return absl::OkStatus();
    }));
    return staged;
  }

  absl::Status Copy(StagedRows& rows, int64_t first, int64_t count, uint8_t* destination) override {
    return CatchTorch([&] {
      c10::InferenceMode inference;
      auto& staged = static_cast<DeviceRows&>(rows);
      staged.ready().block(copy_stream_);
      c10::StreamGuard on_copy_stream(copy_stream_);
      staged.CopyFacts();
      at::Tensor source = staged.rows().narrow(0, first, count);
      at::Tensor out = at::from_blob(destination, {count, source.size(1)}, source.scalar_type());
      out.copy_(source, /*non_blocking=*/true);
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::unique_ptr<TransferEvent>> Record() override {
    std::unique_ptr<TransferEvent> recorded;
    RETURN_IF_ERROR(CatchTorch([&] {
      c10::Event event(device_.type());
      event.record(copy_stream_);
      recorded = std::make_unique<DeviceEvent>(std::move(event));
      return absl::OkStatus();
    }));
    return recorded;
  }

  absl::Status Check() override {
    return CatchTorch([&] {
      c10::InferenceMode inference;
      const at::Tensor probe = at::ones({1}, at::TensorOptions(device_));
      c10::Event event(device_.type());
      event.record(guard_.getStream(device_));
      while (!event.query()) absl::SleepFor(kEventPoll);
      return absl::OkStatus();
    });
  }

 private:
  // Uploads from pinned memory, which LibTorch keeps until the copy has ended. With pageable memory the
  // driver can wait.
  template <typename Type>
  at::Tensor Upload(absl::Span<const int64_t> values) const {
    c10::InferenceMode inference;
    constexpr at::ScalarType kType = c10::CppTypeToScalarType<Type>::value;
    const at::Tensor host =
        at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(kType).pinned_memory(true));
    Type* const to = host.data_ptr<Type>();
    for (size_t i = 0; i < values.size(); ++i) to[i] = static_cast<Type>(values[i]);
    return host.to(device_, /*non_blocking=*/true);
  }

  const c10::Device device_;
  const c10::impl::VirtualGuardImpl guard_;
  const c10::Stream compute_stream_;
  const c10::Stream copy_stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transfer>> MakeTransfer(const std::string& device) {
  std::unique_ptr<Transfer> transfer;
  RETURN_IF_ERROR(CatchTorch([&] {
    const c10::Device where(device);
    if (where.is_cpu()) {
      transfer = std::make_unique<HostTransfer>();
    } else {
      transfer = std::make_unique<DeviceTransfer>(where);
    }
    return absl::OkStatus();
  }));
  return transfer;
}

namespace {

std::shared_ptr<uint8_t> AllocatePinned(int64_t bytes) {
  at::Tensor pinned = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  return std::shared_ptr<uint8_t>(pinned.data_ptr<uint8_t>(), [pinned](uint8_t*) {});
}

}  // namespace

absl::StatusOr<std::shared_ptr<uint8_t>> AllocateHostMemory(int64_t bytes, const std::string& device) {
  std::shared_ptr<uint8_t> memory;
  RETURN_IF_ERROR(CatchTorch([&] {
    if (!c10::Device(device).is_cpu()) {
      absl::Status pinned = CatchTorch([&] {
        memory = AllocatePinned(bytes);
        return absl::OkStatus();
      });
      if (pinned.ok()) return pinned;
      int64_t rounded = 1;
      while (rounded < bytes) rounded *= 2;
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot pin ", rounded, " bytes of host memory, which is ", bytes,
                       " bytes of slabs rounded up to a power of two; lower --slab-count or --slab-bytes, or raise the "
                       "limit on locked memory: ",
                       pinned.message()));
    }
    constexpr size_t kPage = 4096;
    void* plain = std::aligned_alloc(kPage, (static_cast<size_t>(bytes) + kPage - 1) / kPage * kPage);
    if (plain == nullptr) return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of slabs"));
    memory = std::shared_ptr<uint8_t>(static_cast<uint8_t*>(plain), [](uint8_t* p) { std::free(p); });
    return absl::OkStatus();
  }));
  return memory;
}

int64_t DeviceMemoryBytes(const std::string& device) {
  try {
    const c10::Device where(device);
    return where.is_cpu() ? 0 : TensorBytesOn(where);
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace hookline
