#include "server/service/shared_memory/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/shared_pieces.h"

namespace hookline {
namespace {

// Returns the size of the memory if writing to a mapping of it cannot fail. A file that shrinks under a mapping, or
// huge pages that run out, would end the process.
absl::StatusOr<int64_t> SafeBytes(int descriptor) {
  // Seals are checked first, which asks no file system that could take its time to answer: only memory has seals.
  constexpr int kWanted = F_SEAL_SHRINK | F_SEAL_GROW;
  const int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & kWanted) != kWanted) return absl::FailedPreconditionError("it is not sealed memory");
  struct statfs file_system;
  if (fstatfs(descriptor, &file_system) != 0 || file_system.f_type != TMPFS_MAGIC) {
    return absl::FailedPreconditionError("it is memory of huge pages");
  }
  struct stat file;
  if (fstat(descriptor, &file) != 0) return absl::FailedPreconditionError("it has no size");
  if (file.st_size < SharedMemory::kMinBytes || file.st_size > SharedMemory::kMaxBytes ||
      file.st_size % kSharedPageBytes != 0) {
    return absl::FailedPreconditionError(absl::StrCat(file.st_size, " bytes are not from ", SharedMemory::kMinBytes,
                                                      " to ", SharedMemory::kMaxBytes, " in pages"));
  }
  return int64_t{file.st_size};
}

// Lets the kernel allocate the pages of a range at once. Otherwise each page is allocated by a fault when it is first
// written, as kernels before Linux 5.14 do in any case, since they refuse this.
void AllocatePages(uint8_t* data, int64_t bytes) { madvise(data, static_cast<size_t>(bytes), MADV_POPULATE_WRITE); }

}  // namespace

absl::StatusOr<std::shared_ptr<SharedMemory>> SharedMemory::Map(int descriptor,
                                                                std::shared_ptr<std::atomic<int64_t>> mapped_bytes,
                                                                int64_t max_mapped_bytes) {
  const absl::StatusOr<int64_t> bytes = SafeBytes(descriptor);
  if (!bytes.ok()) return bytes.status();
  if (mapped_bytes->fetch_add(*bytes) + *bytes > max_mapped_bytes) {
    mapped_bytes->fetch_sub(*bytes);
    return absl::ResourceExhaustedError(
        absl::StrCat(*bytes, " bytes and the ", mapped_bytes->load(), " mapped already exceed ", max_mapped_bytes));
  }
  void* data = mmap(nullptr, static_cast<size_t>(*bytes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) {
    mapped_bytes->fetch_sub(*bytes);
    return absl::FailedPreconditionError("it cannot be mapped for writing");
  }
  return std::shared_ptr<SharedMemory>(new SharedMemory(static_cast<uint8_t*>(data), *bytes, std::move(mapped_bytes)));
}

SharedMemory::~SharedMemory() {
  munmap(data_, static_cast<size_t>(bytes_));
  mapped_bytes_->fetch_sub(bytes_);
}

bool SharedMemory::Use(int64_t message_bytes, std::function<void()> on_room) {
  const int64_t piece_bytes = SharedPieceBytes(message_bytes);
  const int64_t pieces = bytes_ / piece_bytes;
  if (pieces == 0) return false;
  absl::MutexLock lock(&mutex_);
  on_room_ = std::move(on_room);
  piece_bytes_ = piece_bytes;
  with_client_.assign(static_cast<size_t>(pieces), false);
  written_bytes_.assign(static_cast<size_t>(pieces), 0);
  for (int64_t piece = pieces; piece > 0; --piece) free_.push_back(piece - 1);
  return true;
}

void SharedMemory::StopUsing() {
  absl::MutexLock lock(&mutex_);
  on_room_ = nullptr;
  waiting_ = false;
}

SharedMemory::Put SharedMemory::TryPut(absl::Span<const SlabSpan> data) {
  int64_t bytes = 0;
  for (const SlabSpan& span : data) bytes += span.bytes;
  int64_t offset;
  bool has_pages;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return {Put::Outcome::kGone};
    if (free_.empty()) {
      waiting_ = true;
      return {Put::Outcome::kFull};
    }
    const auto piece = static_cast<size_t>(free_.back());
    free_.pop_back();
    with_client_[piece] = true;
    offset = static_cast<int64_t>(piece) * piece_bytes_;
    has_pages = bytes <= written_bytes_[piece];
    if (!has_pages) written_bytes_[piece] = bytes;
  }
  uint8_t* out = data_ + offset;
  if (!has_pages) AllocatePages(out, bytes);
  for (const SlabSpan& span : data) {
    std::memcpy(out, span.data(), static_cast<size_t>(span.bytes));
    out += span.bytes;
  }
  return {Put::Outcome::kPut, offset};
}

bool SharedMemory::Release(int64_t offset) {
  absl::MutexLock lock(&mutex_);
  if (piece_bytes_ == 0 || offset < 0 || offset % piece_bytes_ != 0) return false;
  const int64_t piece = offset / piece_bytes_;
  if (piece >= static_cast<int64_t>(with_client_.size()) || !with_client_[static_cast<size_t>(piece)]) return false;
  with_client_[static_cast<size_t>(piece)] = false;
  free_.push_back(piece);
  WakeIfWaiting();
  return true;
}

void SharedMemory::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  WakeIfWaiting();
}

void SharedMemory::WakeIfWaiting() {
  if (!waiting_) return;
  waiting_ = false;
  on_room_();
}

}  // namespace hookline
