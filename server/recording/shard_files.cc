#include "server/recording/shard_files.h"

#include <algorithm>
#include <vector>

#include "server/base/status.h"

namespace hookline {
namespace {

// This is less than a quarter of the usual limit of 1024 descriptors. A read in order needs one at a time.
constexpr size_t kMaxOpenFiles = 192;
// The most files that stay open besides those above because a reader still needs them after their removal. Reads of
// further removed files end with ABORTED.
constexpr int64_t kMaxKeptFiles = 64;

}  // namespace

std::shared_ptr<const ReadableFile> ShardFileCache::Find(const Key& key) {
  absl::MutexLock lock(&mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

void ShardFileCache::Add(const Key& key, std::shared_ptr<const ReadableFile> file) {
  std::shared_ptr<const ReadableFile> closed;  // destroyed without the mutex
  absl::MutexLock lock(&mutex_);
  if (by_key_.count(key) != 0) return;
  entries_.emplace_front(key, std::move(file));
  by_key_[key] = entries_.begin();
  if (entries_.size() <= kMaxOpenFiles) return;
  closed = std::move(entries_.back().second);
  by_key_.erase(entries_.back().first);
  entries_.pop_back();
}

void ShardFileCache::Drop(const Key& key) {
  std::shared_ptr<const ReadableFile> closed;  // destroyed without the mutex
  absl::MutexLock lock(&mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  closed = std::move(found->second->second);
  entries_.erase(found->second);
  by_key_.erase(found);
}

void ShardFileCache::DropRecording(int64_t recording) {
  std::list<Entry> closed;  // destroyed without the mutex
  absl::MutexLock lock(&mutex_);
  for (auto it = by_key_.lower_bound({recording, "", ""}); it != by_key_.end() && it->first.recording == recording;) {
    closed.splice(closed.begin(), entries_, it->second);
    it = by_key_.erase(it);
  }
}

int64_t ShardFileCache::NextRecording() {
  absl::MutexLock lock(&mutex_);
  return next_recording_++;
}

bool ShardFileCache::CountKept() {
  absl::MutexLock lock(&mutex_);
  if (kept_ == kMaxKeptFiles) return false;
  ++kept_;
  return true;
}

void ShardFileCache::UncountKept(int64_t files) {
  absl::MutexLock lock(&mutex_);
  kept_ -= files;
}

RecordingFiles::Lease::~Lease() {
  absl::MutexLock lock(&mutex_);
  cache_->UncountKept(static_cast<int64_t>(kept_.size()));
}

bool RecordingFiles::Names(const Manifest* manifest, const ShardInfo& shard) {
  if (manifest == nullptr) return false;
  const size_t index = manifest->ShardOf(shard.first_row);
  return index < manifest->shards.size() && manifest->shards[index].file == shard.file &&
         manifest->shards[index].xxh3 == shard.xxh3;
}

void RecordingFiles::SetManifest(std::shared_ptr<const Manifest> manifest) {
  std::shared_ptr<Lease> lease;
  std::vector<ShardInfo> gone;
  {
    absl::MutexLock lock(&mutex_);
    lease = lease_.lock();
    if (manifest_ != nullptr) {
      for (const ShardInfo& shard : manifest_->shards) {
        if (Names(manifest.get(), shard)) continue;
        gone.push_back(shard);
        auto checked = checked_.extract({shard.file, shard.xxh3});
        if (lease == nullptr || checked.empty()) continue;
        absl::MutexLock lease_lock(&lease->mutex_);
        lease->checked_.insert(std::move(checked));
      }
    }
    manifest_ = std::move(manifest);
  }
  for (const ShardInfo& shard : gone) {
    if (lease != nullptr && cache_->CountKept()) {
      auto file = Open(*lease, shard);
      absl::MutexLock lock(&lease->mutex_);
      if (!file.ok() || !lease->kept_.try_emplace({shard.file, shard.xxh3}, *std::move(file)).second) {
        cache_->UncountKept(1);
      }
    }
    cache_->Drop(KeyOf(shard));
  }
}

absl::StatusOr<std::shared_ptr<RecordingFiles::Lease>> RecordingFiles::Read(
    const std::function<absl::StatusOr<std::unique_ptr<Directory>>()>& open) {
  absl::MutexLock lock(&mutex_);
  if (std::shared_ptr<Lease> lease = lease_.lock()) return lease;
  auto directory = open();
  if (!directory.ok()) return directory.status();
  auto lease = std::make_shared<Lease>(cache_, *std::move(directory));
  lease_ = lease;
  return lease;
}

absl::StatusOr<std::shared_ptr<const ReadableFile>> RecordingFiles::Open(Lease& lease, const ShardInfo& shard) {
  {
    absl::MutexLock lock(&lease.mutex_);
    const auto kept = lease.kept_.find({shard.file, shard.xxh3});
    if (kept != lease.kept_.end()) return kept->second;
  }
  const ShardFileCache::Key key = KeyOf(shard);
  if (std::shared_ptr<const ReadableFile> open = cache_->Find(key)) return open;
  ASSIGN_OR_RETURN(std::shared_ptr<const ReadableFile> file, OpenAnew(lease, shard));
  if (IsCurrent(shard)) cache_->Add(key, file);
  return file;
}

absl::StatusOr<std::shared_ptr<const ReadableFile>> RecordingFiles::OpenAnew(Lease& lease, const ShardInfo& shard) {
  ASSIGN_OR_RETURN(std::shared_ptr<const ReadableFile> file, lease.directory_->OpenFile(shard.file));
  return file;
}

bool RecordingFiles::IsCurrent(const ShardInfo& shard) const {
  absl::MutexLock lock(&mutex_);
  return Names(manifest_.get(), shard);
}

bool RecordingFiles::IsChecked(Lease& lease, const ShardInfo& shard, const FileFacts& facts) const {
  absl::MutexLock lock(&mutex_);
  if (const auto found = checked_.find({shard.file, shard.xxh3}); found != checked_.end()) {
    return found->second == facts;
  }
  absl::MutexLock lease_lock(&lease.mutex_);
  const auto found = lease.checked_.find({shard.file, shard.xxh3});
  return found != lease.checked_.end() && found->second == facts;
}

void RecordingFiles::SetChecked(Lease& lease, const ShardInfo& shard, const FileFacts& facts) {
  absl::MutexLock lock(&mutex_);
  if (Names(manifest_.get(), shard)) {
    checked_[{shard.file, shard.xxh3}] = facts;
    return;
  }
  absl::MutexLock lease_lock(&lease.mutex_);
  lease.checked_[{shard.file, shard.xxh3}] = facts;
}

}  // namespace hookline
