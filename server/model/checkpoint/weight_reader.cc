#include "server/model/checkpoint/weight_reader.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// What a thread reads at a time: it is still in the processor's cache when it is hashed and converted, and it holds
// whole values of every type.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// Tensors from here on get memory of their own in huge pages: the kernel hands it out several times as fast, and matrix
// products miss fewer translations. Smaller ones would leave too much of a page unused, and too many of them would meet
// the kernel's limit of 65530 maps.
constexpr int64_t kHugePageBytes = int64_t{2} << 20;
constexpr int64_t kMinMappedBytes = 2 * kHugePageBytes;

std::string Quoted(absl::string_view name) {
  return absl::StrCat("'", absl::Utf8SafeCHexEscape(name.substr(0, 120)), "'");
}

// Memory for weights, contiguous and not yet touched.
at::Tensor NewTensor(at::IntArrayRef sizes, at::ScalarType type) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(type));
  if (bytes < kMinMappedBytes) return at::empty(sizes, type);
  // A page more than needed, so that the tensor can begin with a huge page; what lies before it is given back.
  const size_t length = static_cast<size_t>(bytes + kHugePageBytes);
  void* const mapped = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return at::empty(sizes, type);  // whose error says how much is wanted
  uint8_t* const begin = static_cast<uint8_t*>(mapped);
  const size_t before = static_cast<size_t>(-reinterpret_cast<uintptr_t>(begin) & (kHugePageBytes - 1));
  if (before > 0) munmap(begin, before);
  const size_t kept = length - before;
  madvise(begin + before, kept, MADV_HUGEPAGE);
  return at::from_blob(
      begin + before, sizes, [kept](void* data) { munmap(data, kept); }, type);
}

// Gets a piece of a range: its first byte, counted from the start of the range, and the bytes. Called by several
// threads in any order.
using UsePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes)>;

// Reads a range of a file once, by LibTorch's threads, and computes its hash and checksum. Pieces are claimed in order
// and hashed in order: whoever has read one waits for its turn, so that no more of them are held than there are
// threads.
class Pass {
 public:
  enum class Checksum { kNone, kCrc32 };

  Pass(const InputFile& file, int64_t offset, int64_t bytes, Checksum checksum)
      : file_(file), offset_(offset), bytes_(bytes), checksum_(checksum), state_(XXH3_createState(), &XXH3_freeState) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }

  // With `into`, which has room for all of the range, pieces are read to where they belong there. To be called once.
  absl::Status Run(uint8_t* into, UsePiece use) {
    const int64_t pieces = (bytes_ + kPieceBytes - 1) / kPieceBytes;
    at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), pieces), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ReadPieces(into, use);
    });
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  XXH128_hash_t hash() {
    absl::MutexLock lock(&mutex_);
    return XXH3_128bits_digest(state_.get());
  }
  // 0 without a checksum.
  uint32_t crc() {
    absl::MutexLock lock(&mutex_);
    return crc_;
  }

 private:
  void ReadPieces(uint8_t* into, UsePiece use) {
    std::vector<uint8_t> buffer;
    while (true) {
      const int64_t piece = next_++;
      const int64_t begin = piece * kPieceBytes;
      if (begin >= bytes_ || failed_) return;
      const size_t size = static_cast<size_t>(std::min(kPieceBytes, bytes_ - begin));
      absl::Status status;
      uint32_t crc = 0;
      // Nothing may leave a turn untaken, for which other threads wait.
      try {
        if (into == nullptr) buffer.resize(size);
        const absl::Span<uint8_t> bytes(into == nullptr ? buffer.data() : into + begin, size);
        status = file_.ReadAt(offset_ + begin, bytes);
        if (status.ok()) {
          if (checksum_ == Checksum::kCrc32) crc = static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
          use(begin, bytes);
        }
        TakeTurn(piece, std::move(status), bytes, crc);
      } catch (const std::exception& error) {
        TakeTurn(piece, absl::ResourceExhaustedError(error.what()), {}, crc);
      }
    }
  }

  void TakeTurn(int64_t piece, absl::Status status, absl::Span<const uint8_t> bytes, uint32_t crc) {
    absl::MutexLock lock(&mutex_);
    const auto is_turn = [&] { return !status_.ok() || turn_ == piece; };
    mutex_.Await(absl::Condition(&is_turn));
    if (!status_.ok()) return;
    if (!status.ok()) {
      failed_ = true;
      status_ = std::move(status);
      return;
    }
    XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
    if (checksum_ == Checksum::kCrc32) {
      crc_ = static_cast<uint32_t>(crc32_combine(crc_, crc, static_cast<z_off_t>(bytes.size())));
    }
    ++turn_;
  }

  const InputFile& file_;
  const int64_t offset_;
  const int64_t bytes_;
  const Checksum checksum_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  absl::Mutex mutex_;
  int64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  uint32_t crc_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_ ABSL_PT_GUARDED_BY(mutex_);
};

void Discard(int64_t /*begin*/, absl::Span<const uint8_t> /*bytes*/) {}

absl::Status Damaged(const StoredRange& range) {
  return absl::FailedPreconditionError(absl::StrCat("the ", range.bytes, " bytes from byte ", range.offset,
                                                    " on do not have the checksum that the file gives; it is damaged"));
}

}  // namespace

absl::StatusOr<at::Tensor> WeightReader::Read(const std::string& name, at::ScalarType dtype) {
  const StoredTensor& tensor = weights_.tensors.at(name);
  at::Tensor values = NewTensor(tensor.sizes(), dtype);
  const absl::Status status = ReadInto(tensor, &values, &hashes_[name]);
  if (status.ok()) return values;
  return absl::Status(status.code(), absl::StrCat(weights_.path, ": tensor ", Quoted(name), ": ", status.message()));
}

absl::StatusOr<std::string> WeightReader::Finish(absl::string_view configuration) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  // Each text with its length, so that no two lists of texts give the same bytes.
  const auto add = [&state](absl::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(state.get(), &size, sizeof(size));
    XXH3_128bits_update(state.get(), text.data(), text.size());
  };
  std::set<const InputFile*> files;
  for (const auto& [name, tensor] : weights_.tensors) {
    files.insert(tensor.storage().file.get());
    const auto [hash, is_new] = hashes_.try_emplace(name);
    if (is_new) {
      if (absl::Status status = ReadInto(tensor, /*values=*/nullptr, &hash->second); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat(weights_.path, ": tensor ", Quoted(name), ": ", status.message()));
      }
    }
    add(name);
    add(c10::toString(tensor.scalar_type()));
    XXH3_128bits_update(state.get(), tensor.sizes().data(), tensor.sizes().size() * sizeof(int64_t));
    XXH3_128bits_update(state.get(), &hash->second, sizeof(XXH128_hash_t));
  }
  for (const InputFile* file : files) RETURN_IF_ERROR(file->CheckUnchanged());
  add(configuration);
  const XXH128_hash_t digest = XXH3_128bits_digest(state.get());
  return absl::StrCat(absl::Hex(digest.high64, absl::kZeroPad16), absl::Hex(digest.low64, absl::kZeroPad16));
}

absl::Status WeightReader::ReadInto(const StoredTensor& tensor, at::Tensor* values, XXH128_hash_t* hash) {
  const StoredRange& storage = tensor.storage();
  if (!tensor.is_contiguous()) return ReadStrided(tensor, values, hash);
  const bool is_all = tensor.span_bytes() == storage.bytes;
  if (!is_all) RETURN_IF_ERROR(CheckRange(storage));
  const bool converts = values != nullptr && values->scalar_type() != tensor.scalar_type();
  const int64_t item = static_cast<int64_t>(c10::elementSize(tensor.scalar_type()));
  at::Tensor flat = converts ? values->view({-1}) : at::Tensor();
  const auto convert = [&](int64_t begin, absl::Span<const uint8_t> bytes) {
    const int64_t count = static_cast<int64_t>(bytes.size()) / item;
    // Only read from, though LibTorch takes no pointer to const.
    const at::Tensor piece = at::from_blob(const_cast<uint8_t*>(bytes.data()), {count}, tensor.scalar_type());
    flat.narrow(0, begin / item, count).copy_(piece);
  };
  const bool is_checked = is_all && storage.crc.has_value();
  Pass pass(*storage.file, tensor.first_byte(), tensor.span_bytes(),
            is_checked ? Pass::Checksum::kCrc32 : Pass::Checksum::kNone);
  if (converts) {
    RETURN_IF_ERROR(pass.Run(/*into=*/nullptr, convert));
  } else {
    RETURN_IF_ERROR(pass.Run(values == nullptr ? nullptr : static_cast<uint8_t*>(values->data_ptr()), Discard));
  }
  if (is_checked && *storage.crc != pass.crc()) return Damaged(storage);
  *hash = pass.hash();
  return absl::OkStatus();
}

absl::Status WeightReader::ReadStrided(const StoredTensor& tensor, at::Tensor* values, XXH128_hash_t* hash) {
  RETURN_IF_ERROR(CheckRange(tensor.storage()));
  const int64_t item = static_cast<int64_t>(c10::elementSize(tensor.scalar_type()));
  const at::Tensor span = NewTensor({tensor.span_bytes() / item}, tensor.scalar_type());
  Pass pass(*tensor.storage().file, tensor.first_byte(), tensor.span_bytes(), Pass::Checksum::kNone);
  RETURN_IF_ERROR(pass.Run(static_cast<uint8_t*>(span.data_ptr()), Discard));
  const at::Tensor rows = span.as_strided(tensor.sizes(), tensor.strides()).contiguous();
  *hash = XXH3_128bits(rows.data_ptr(), rows.nbytes());
  if (values != nullptr) values->copy_(rows);
  return absl::OkStatus();
}

absl::Status WeightReader::CheckRange(const StoredRange& range) {
  if (!range.crc || !checked_.insert({range.file.get(), range.offset}).second) return absl::OkStatus();
  Pass pass(*range.file, range.offset, range.bytes, Pass::Checksum::kCrc32);
  RETURN_IF_ERROR(pass.Run(/*into=*/nullptr, Discard));
  return *range.crc == pass.crc() ? absl::OkStatus() : Damaged(range);
}

}  // namespace hookline
