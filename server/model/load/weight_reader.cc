#include "server/model/load/weight_reader.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/model/load/read_team.h"

namespace hookline {
namespace {

// A thread reads this much at a time. A piece is still in the processor's cache when it is hashed and converted, and it
// holds whole values of every type.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// The most pieces that can be read ahead of the piece whose turn it is to be hashed: enough that a delayed thread does
// not delay the others, and few enough to bound the memory.
constexpr int64_t kMaxAhead = 16;

// Tensors of at least this size get their own memory in huge pages: the kernel provides it several times as fast, and
// matrix products miss fewer translations. Smaller tensors would leave too much of a page unused, and too many of them
// would reach the kernel's limit of 65530 maps.
constexpr int64_t kHugePageBytes = int64_t{2} << 20;
constexpr int64_t kMinMappedBytes = 2 * kHugePageBytes;

// Allocates memory for weights, contiguous and not yet touched.
at::Tensor NewTensor(at::IntArrayRef sizes, at::ScalarType type) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(type));
  if (bytes < kMinMappedBytes) return at::empty(sizes, type);
  // Maps one more huge page, so that the tensor can begin with a huge page, and gives back what lies before and after
  // it. The last part of the tensor gets ordinary pages, since a whole huge page would waste up to 2 MiB.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t length = static_cast<size_t>(bytes + kHugePageBytes);
  void* const mapped = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return at::empty(sizes, type);  // the error of which says how much was requested
  uint8_t* const begin = static_cast<uint8_t*>(mapped);
  const size_t before = static_cast<size_t>(-reinterpret_cast<uintptr_t>(begin) & (kHugePageBytes - 1));
  if (before > 0) munmap(begin, before);
  uint8_t* const data = begin + before;
  const size_t kept = (static_cast<size_t>(bytes) + page - 1) / page * page;
  if (before + kept < length) munmap(data + kept, length - before - kept);
  madvise(data, static_cast<size_t>(bytes / kHugePageBytes * kHugePageBytes), MADV_HUGEPAGE);
  return at::from_blob(
      data, sizes, [kept](void* values) { munmap(values, kept); }, type);
}

// Receives a piece of a range: its first byte, counted from the start of the range, and the bytes. Called by several
// threads in any order.
using UsePiece = absl::FunctionRef<void(int64_t begin, absl::Span<const uint8_t> bytes)>;

template <typename T>
absl::Span<const uint8_t> BytesOf(const T* values, size_t count) {
  return {reinterpret_cast<const uint8_t*>(values), count * sizeof(T)};
}

// Reads a range of a file once, with the threads of the team, and computes its hash and checksum. Pieces are claimed in
// order and hashed in order; a piece that is read before its turn waits in memory, so that no thread has to wait for
// another one.
class Pass {
 public:
  enum class Checksum { kNone, kCrc32 };

  Pass(const InputFile& file, int64_t offset, int64_t bytes, Checksum checksum)
      : file_(file), offset_(offset), bytes_(bytes), checksum_(checksum) {}

  // If `into` is not null, it has room for the whole range, and pieces are read to their places there. Call it once.
  absl::Status Run(ReadTeam& team, uint8_t* into, UsePiece use) {
    const auto read = [&] { ReadPieces(into, use); };
    if (bytes_ > kPieceBytes) {
      team.Run(read);
    } else {
      read();
    }
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  Xxh3::Hash hash() {
    absl::MutexLock lock(&mutex_);
    return hash_.hash();
  }
  // Returns 0 without a checksum.
  uint32_t crc() {
    absl::MutexLock lock(&mutex_);
    return crc_;
  }

 private:
  struct Piece {
    std::vector<uint8_t> buffer;  // unless the piece is read to its final place
    absl::Span<const uint8_t> bytes;
    uint32_t crc = 0;
  };

  void ReadPieces(uint8_t* into, UsePiece use) {
    while (true) {
      const int64_t index = next_++;
      const int64_t begin = index * kPieceBytes;
      if (begin >= bytes_ || failed_) return;
      absl::Status status;
      try {
        Piece piece;
        const size_t size = static_cast<size_t>(std::min(kPieceBytes, bytes_ - begin));
        if (into == nullptr) piece.buffer.resize(size);
        const absl::Span<uint8_t> bytes(into == nullptr ? piece.buffer.data() : into + begin, size);
        status = file_.ReadAt(offset_ + begin, bytes);
        if (status.ok()) {
          if (checksum_ == Checksum::kCrc32) piece.crc = static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
          use(begin, bytes);
          piece.bytes = bytes;
          HashInTurn(index, std::move(piece));
        }
      } catch (const std::exception& error) {
        status = absl::ResourceExhaustedError(error.what());
      }
      if (status.ok()) continue;
      absl::MutexLock lock(&mutex_);
      failed_ = true;
      if (status_.ok()) status_ = std::move(status);
    }
  }

  void HashInTurn(int64_t index, Piece piece) {
    absl::MutexLock lock(&mutex_);
    const auto has_room = [&] {
      mutex_.AssertHeld();
      return !status_.ok() || index < turn_ + kMaxAhead;
    };
    mutex_.Await(absl::Condition(&has_room));
    waiting_.emplace(index, std::move(piece));
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first == turn_; it = waiting_.erase(it), ++turn_) {
      const Piece& next = it->second;
      hash_.Update(next.bytes);
      if (checksum_ == Checksum::kCrc32) {
        crc_ = static_cast<uint32_t>(crc32_combine(crc_, next.crc, static_cast<z_off_t>(next.bytes.size())));
      }
    }
  }

  const InputFile& file_;
  const int64_t offset_;
  const int64_t bytes_;
  const Checksum checksum_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  absl::Mutex mutex_;
  int64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int64_t, Piece> waiting_ ABSL_GUARDED_BY(mutex_);  // pieces that wait for their turn, by index
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  uint32_t crc_ ABSL_GUARDED_BY(mutex_) = 0;
  Xxh3 hash_ ABSL_GUARDED_BY(mutex_);
};

template <typename From>
void ConvertFrom(const uint8_t* from, int64_t count, at::ScalarType to_type, void* to) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, to_type, "ConvertFrom", [&] {
    const From* const in = reinterpret_cast<const From*>(from);
    scalar_t* const out = static_cast<scalar_t*>(to);
    for (int64_t i = 0; i < count; ++i) out[i] = c10::convert<scalar_t>(in[i]);
  });
}

// Converts `count` values of floating types with the rounding of LibTorch, whose own conversion would start threads for
// each piece.
void Convert(const uint8_t* from, at::ScalarType from_type, int64_t count, at::ScalarType to_type, void* to) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from_type, "Convert",
                                  [&] { ConvertFrom<scalar_t>(from, count, to_type, to); });
}

void Discard(int64_t /*begin*/, absl::Span<const uint8_t> /*bytes*/) {}

absl::Status Damaged(const StoredRange& range) {
  return absl::FailedPreconditionError(absl::StrCat("the ", range.bytes, " bytes from byte ", range.offset,
                                                    " on do not match their checksum; the file is damaged"));
}

}  // namespace

WeightReader::WeightReader(const StateDict& weights)
    : weights_(weights), team_(std::make_unique<ReadTeam>(at::get_num_threads() - 1)) {}

WeightReader::~WeightReader() = default;

absl::StatusOr<at::Tensor> WeightReader::Read(const std::string& name, at::ScalarType dtype) {
  const StoredTensor& tensor = weights_.tensors.at(name);
  at::Tensor values = NewTensor(tensor.sizes(), dtype);
  const absl::Status status = ReadInto(tensor, &values, &hashes_[name]);
  if (status.ok()) return values;
  return absl::Status(status.code(), absl::StrCat(weights_.path, ": tensor ", Quoted(name), ": ", status.message()));
}

absl::StatusOr<at::Tensor> WeightReader::Decode(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype,
                                                DecodePiece decode) {
  const StoredTensor& tensor = weights_.tensors.at(name);
  at::Tensor values = NewTensor(sizes, dtype);
  if (!tensor.is_contiguous()) {
    ASSIGN_OR_RETURN(const at::Tensor stored, Read(name, tensor.scalar_type()));
    decode(0, BytesOf(static_cast<const uint8_t*>(stored.data_ptr()), stored.nbytes()), values);
    return values;
  }
  const absl::Status status = ReadPieces(
      tensor, /*into=*/nullptr, [&](int64_t begin, absl::Span<const uint8_t> bytes) { decode(begin, bytes, values); },
      &hashes_[name]);
  if (status.ok()) return values;
  return absl::Status(status.code(), absl::StrCat(weights_.path, ": tensor ", Quoted(name), ": ", status.message()));
}

absl::StatusOr<std::string> WeightReader::Finish(absl::string_view configuration) {
  Xxh3 all;
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
    all.UpdateWithLength(name);
    all.UpdateWithLength(c10::toString(tensor.scalar_type()));
    all.Update(BytesOf(tensor.sizes().data(), tensor.sizes().size()));
    all.Update(BytesOf(&hash->second, 1));
  }
  for (const InputFile* file : files) RETURN_IF_ERROR(file->CheckUnchanged());
  all.UpdateWithLength(configuration);
  return all.hex();
}

absl::Status WeightReader::ReadInto(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash) {
  const bool converts = values != nullptr && values->scalar_type() != tensor.scalar_type();
  const bool in_pieces = tensor.is_floating_point() && (values == nullptr || values->is_floating_point());
  if (!tensor.is_contiguous() || (converts && !in_pieces)) return ReadAtOnce(tensor, values, hash);
  uint8_t* const data = values == nullptr ? nullptr : static_cast<uint8_t*>(values->data_ptr());
  if (!converts) return ReadPieces(tensor, data, Discard, hash);
  const int64_t item = static_cast<int64_t>(c10::elementSize(tensor.scalar_type()));
  const int64_t new_item = static_cast<int64_t>(c10::elementSize(values->scalar_type()));
  const auto convert = [&](int64_t begin, absl::Span<const uint8_t> bytes) {
    Convert(bytes.data(), tensor.scalar_type(), static_cast<int64_t>(bytes.size()) / item, values->scalar_type(),
            data + begin / item * new_item);
  };
  return ReadPieces(tensor, /*into=*/nullptr, convert, hash);
}

absl::Status WeightReader::ReadPieces(const StoredTensor& tensor, uint8_t* into, UsePiece use, Xxh3::Hash* hash) {
  const StoredRange& storage = tensor.storage();
  const bool is_all = tensor.span_bytes() == storage.bytes;
  if (!is_all) RETURN_IF_ERROR(CheckRange(storage));
  const bool is_checked = is_all && storage.crc.has_value();
  Pass pass(*storage.file, tensor.first_byte(), tensor.span_bytes(),
            is_checked ? Pass::Checksum::kCrc32 : Pass::Checksum::kNone);
  RETURN_IF_ERROR(pass.Run(*team_, into, use));
  if (is_checked && *storage.crc != pass.crc()) return Damaged(storage);
  *hash = pass.hash();
  return absl::OkStatus();
}

absl::Status WeightReader::ReadAtOnce(const StoredTensor& tensor, at::Tensor* values, Xxh3::Hash* hash) {
  RETURN_IF_ERROR(CheckRange(tensor.storage()));
  const int64_t item = static_cast<int64_t>(c10::elementSize(tensor.scalar_type()));
  const at::Tensor span = NewTensor({tensor.span_bytes() / item}, tensor.scalar_type());
  Pass pass(*tensor.storage().file, tensor.first_byte(), tensor.span_bytes(), Pass::Checksum::kNone);
  RETURN_IF_ERROR(pass.Run(*team_, static_cast<uint8_t*>(span.data_ptr()), Discard));
  const at::Tensor rows = span.as_strided(tensor.sizes(), tensor.strides()).contiguous();
  Xxh3 of_rows;
  of_rows.Update(BytesOf(static_cast<const uint8_t*>(rows.data_ptr()), rows.nbytes()));
  *hash = of_rows.hash();
  if (values != nullptr) values->copy_(rows);
  return absl::OkStatus();
}

absl::Status WeightReader::CheckRange(const StoredRange& range) {
  if (!range.crc || !checked_.insert({range.file.get(), range.offset}).second) return absl::OkStatus();
  Pass pass(*range.file, range.offset, range.bytes, Pass::Checksum::kCrc32);
  RETURN_IF_ERROR(pass.Run(*team_, /*into=*/nullptr, Discard));
  return *range.crc == pass.crc() ? absl::OkStatus() : Damaged(range);
}

}  // namespace hookline
