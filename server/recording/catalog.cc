#include "server/recording/catalog.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/recording/leftovers.h"
#include "server/recording/merge_parts.h"
#include "server/recording/merge_plan.h"
#include "server/recording/shard.h"
#include "server/recording/shard_writer.h"

namespace hookline {
namespace {

absl::Status CheckHookPoints(const Manifest& manifest) {
  std::set<absl::string_view> names;
  for (const RecordedHookPoint& point : manifest.hook_points) {
    if (absl::StartsWith(point.name, "provenance/") || point.name == "__metadata__") {
      return InvalidField("hook_points", absl::StrCat(point.name, ": this name is reserved in recordings"));
    }
    if (!names.insert(point.name).second) {
      return InvalidField("hook_points", absl::StrCat(point.name, ": given twice"));
    }
  }
  return absl::OkStatus();
}

int64_t ShardRows(const Manifest& manifest, int64_t shard_bytes) {
  int64_t row_bytes = kProvenanceRowBytes;  // widths and the number of hook points are bounded far below overflow
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) row_bytes += manifest.LayoutOf(static_cast<int>(i)).bytes();
  return std::max<int64_t>(1, shard_bytes / row_bytes);
}

// Returns the bytes on the disk that a recording takes besides its shards: its directory and its manifest, each in
// blocks of 4 KiB. The manifest counts twice, because both the old and the new one exist while it is replaced.
int64_t OverheadBytes(const Manifest& manifest) {
  constexpr int64_t kBlockBytes = 4096;
  const auto manifest_bytes = static_cast<int64_t>(FormatManifest(manifest).size());
  return kBlockBytes + 2 * ((manifest_bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes);
}

absl::Status GoneError(absl::string_view name) {
  return absl::DataLossError(absl::StrCat("recording ", name,
                                          ": another program has removed its directory; "
                                          "DeleteRecording frees its name"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(std::unique_ptr<Directory> root, const CatalogOptions& options) {
  if (options.quota_bytes < 0 || options.free_bytes < 0 || options.shard_bytes <= 0 || options.read_bytes < 0) {
    return absl::InvalidArgumentError(
        "recordings: quota, free and read bytes are 0 or more, shards have at least one byte");
  }
  RETURN_IF_ERROR(root->Lock());
  std::unique_ptr<Catalog> catalog(new Catalog(std::move(root), options));
  RETURN_IF_ERROR(catalog->Sweep());
  return catalog;
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::OpenShared(std::unique_ptr<Directory> shared,
                                                             const std::string& folder, const CatalogOptions& options) {
  RETURN_IF_ERROR(CheckRecordingName(folder));
  RETURN_IF_ERROR(shared->LockShared());
  auto own = shared->OpenDirectory(folder);
  if (absl::IsNotFound(own.status())) {
    RETURN_IF_ERROR(shared->MakeDirectory(folder));
    RETURN_IF_ERROR(shared->Sync());
    own = shared->OpenDirectory(folder);
  }
  RETURN_IF_ERROR(own.status());
  ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, Open(*std::move(own), options));
  catalog->shared_ = std::move(shared);
  return catalog;
}

absl::Status Catalog::Sweep() {
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, root_->List());
  for (const DirectoryEntry& entry : entries) {
    if (entry.kind == DirectoryEntry::Kind::kDirectory && CheckRecordingName(entry.name).ok()) {
      SweepRecording(entry.name);
    } else {
      notes_.push_back(absl::StrCat(root_->path(), ": ", Quoted(entry.name), " is not a recording; left alone"));
    }
  }
  return absl::OkStatus();
}

void Catalog::SweepRecording(const std::string& name) {
  const auto note = [&](absl::string_view text) { notes_.push_back(absl::StrCat("recording ", name, ": ", text)); };
  auto directory = root_->OpenDirectory(name);
  if (!directory.ok()) return note(directory.status().message());
  absl::MutexLock lock(&mutex_);
  auto manifest = ReadManifest(**directory);
  if (absl::IsNotFound(manifest.status())) {
    RemoveLeftovers(**directory, {});
    directory->reset();
    if (absl::Status removed = root_->RemoveDirectory(name); !removed.ok()) {
      note("it has no manifest and holds files of other programs; left alone");
    }
    return;
  }
  if (manifest.ok() && manifest->name != name) {
    manifest = absl::DataLossError(absl::StrCat(kManifestFile, ": name: not ", name));
  }
  Entry& entry = entries_[name];
  if (!manifest.ok()) {
    note(manifest.status().message());
    entry.damage = absl::DataLossError(manifest.status().message());
    return;
  }
  RemoveLeftovers(**directory, {&*manifest});
  const RecordingState was = manifest->state;
  if (was == RecordingState::kRunning) manifest->state = RecordingState::kInterrupted;
  if (absl::Status lengths = CheckLengths(**directory, *manifest); !lengths.ok()) {
    note(lengths.message());
    manifest->state = RecordingState::kFailed;
    manifest->error = Escaped(lengths.message());
  }
  if (manifest->state != was) {
    manifest->update_time = absl::Now();
    // A read-only disk keeps the old state, which the next sweep handles in the same way.
    if (absl::Status written = WriteManifest(**directory, *manifest); !written.ok()) note(written.message());
  }
  SetManifest(entry, *std::move(manifest));
}

void Catalog::SetManifest(Entry& entry, Manifest manifest) {
  entry.used_bytes = manifest.bytes() + OverheadBytes(manifest);
  if (entry.files == nullptr) entry.files = std::make_shared<RecordingFiles>(open_files_);
  entry.manifest = std::make_shared<const Manifest>(std::move(manifest));
  entry.files->SetManifest(entry.manifest);
}

absl::StatusOr<std::unique_ptr<RecordingWriter>> Catalog::Create(Manifest manifest) {
  RETURN_IF_ERROR(CheckRecordingName(manifest.name));
  RETURN_IF_ERROR(CheckHookPoints(manifest));
  manifest.state = RecordingState::kRunning;
  manifest.shard_rows = ShardRows(manifest, options_.shard_bytes);
  manifest.shards.clear();
  manifest.resume_row = 0;
  manifest.create_time = manifest.update_time = absl::Now();
  // A manifest that could not be read back must not be written.
  if (auto parsed = ParseManifest(FormatManifest(manifest)); !parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("recording: ", parsed.status().message()));
  }
  const auto exists = [&] { return absl::AlreadyExistsError(absl::StrCat("recording ", manifest.name, " exists")); };
  {
    absl::MutexLock lock(&mutex_);
    const auto [entry, is_new] = entries_.try_emplace(manifest.name);
    if (!is_new && entry->second.is_being_removed) {
      return absl::AbortedError(absl::StrCat("recording ", manifest.name, " is being removed; try again"));
    }
    if (!is_new) return exists();
    entry->second.is_busy = entry->second.is_being_made = true;
    SetManifest(entry->second, manifest);
  }
  auto directory = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(Charge(manifest.name, 0));  // what it takes without rows is already counted
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> made, MakeRecording(manifest.name));
    if (absl::Status written = WriteManifest(*made, manifest); !written.ok()) {
      Unmake(manifest.name);
      return written;
    }
    return made;
  }();
  if (!directory.ok()) {
    Forget(manifest.name);
    if (absl::IsAlreadyExists(directory.status())) return exists();
    return directory.status();
  }
  {
    absl::MutexLock lock(&mutex_);
    entries_.find(manifest.name)->second.is_being_made = false;
  }
  return MakeWriter(*std::move(directory), std::move(manifest));
}

absl::StatusOr<std::unique_ptr<Directory>> Catalog::MakeRecording(const std::string& name) {
  RETURN_IF_ERROR(root_->MakeDirectory(name));
  auto made = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(root_->Sync());
    return root_->OpenDirectory(name);
  }();
  if (!made.ok()) Unmake(name);
  return made;
}

void Catalog::Unmake(const std::string& name) {
  auto left = root_->OpenDirectory(name);
  if (!left.ok()) return;
  (*left)->Remove(kManifestFile).IgnoreError();
  RemoveLeftovers(**left, {});
  left->reset();
  root_->RemoveDirectory(name).IgnoreError();
}

void Catalog::Forget(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  entries_.erase(name);
}

absl::StatusOr<std::shared_ptr<const Manifest>> Catalog::Reserve(const Manifest& merged) {
  absl::MutexLock lock(&mutex_);
  const auto [found, is_new] = entries_.try_emplace(merged.name);
  Entry& entry = found->second;
  if (!is_new) {
    if (entry.is_busy) {
      return absl::FailedPreconditionError(
          absl::StrCat("recording ", merged.name, " is being written, merged or removed"));
    }
    const std::shared_ptr<const Manifest>& there = entry.manifest;
    if (there != nullptr && there->merged && there->state == RecordingState::kComplete &&
        there->request_digest == merged.request_digest) {
      return there;
    }
    return absl::AlreadyExistsError(
        absl::StrCat("recording ", merged.name, " exists, and is not a merge of these parts"));
  }
  entry.is_busy = entry.is_being_made = true;
  Manifest begun = merged;
  begun.state = RecordingState::kRunning;
  begun.shards.clear();
  begun.resume_row = 0;
  begun.create_time = begun.update_time = absl::Now();
  SetManifest(entry, std::move(begun));
  return nullptr;
}

absl::StatusOr<std::unique_ptr<RecordingMerge>> Catalog::Merge(const std::string& name, const std::string& client,
                                                               const std::vector<std::string>& parts) {
  RETURN_IF_ERROR(CheckRecordingName(name));
  ASSIGN_OR_RETURN(MergeParts found, FindMergeParts(*root_, shared_.get(), parts));
  ASSIGN_OR_RETURN(MergePlan plan, PlanMerge(name, found.manifests));
  plan.manifest.client = client;
  ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> there, Reserve(plan.manifest));
  if (there != nullptr) return std::make_unique<RecordingMerge>(*there);
  auto directory = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(Charge(name, 0, plan.manifest.bytes()));
    return MakeRecording(name);
  }();
  if (!directory.ok()) {
    Forget(name);
    return directory.status();
  }
  RecordingMerge::Host host;
  host.published = [this](const Manifest& manifest) {
    absl::MutexLock lock(&mutex_);
    Entry& entry = entries_.find(manifest.name)->second;
    entry.is_busy = entry.is_being_made = false;
    entry.charged_bytes = 0;
    SetManifest(entry, manifest);
  };
  host.abandoned = [this, name] {
    Unmake(name);
    Forget(name);
  };
  return std::make_unique<RecordingMerge>(*std::move(directory), std::move(plan), std::move(found.parts),
                                          std::move(host));
}

absl::StatusOr<std::unique_ptr<RecordingWriter>> Catalog::Continue(absl::string_view name,
                                                                   std::optional<ResumePoint> resume) {
  Manifest manifest;
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(Entry * entry, Find(name));
    if (entry->is_busy) return absl::FailedPreconditionError(absl::StrCat("recording ", name, " is being written"));
    if (entry->manifest == nullptr) return entry->damage;
    manifest = *entry->manifest;
    if (manifest.merged) {
      return absl::FailedPreconditionError(
          absl::StrCat("recording ", name, " is a merge of parts and cannot be continued"));
    }
    if (resume.has_value() && resume->row > manifest.rows()) {
      return absl::FailedPreconditionError(absl::StrCat("recording ", name, " has ", manifest.rows(),
                                                        " rows; the resume token continues after ", resume->row));
    }
    entry->is_busy = true;
  }
  auto directory = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(Charge(std::string(name), 0));
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> opened, OpenRecording(name));
    RETURN_IF_ERROR(CheckLastShard(*opened, manifest));
    manifest.state = RecordingState::kRunning;
    manifest.error.clear();
    if (resume.has_value()) {
      ASSIGN_OR_RETURN(manifest, CutBack(*opened, manifest, *resume));
    }
    manifest.update_time = absl::Now();
    RETURN_IF_ERROR(WriteManifest(*opened, manifest));
    {
      // The manifest is set before files are removed, so that readers of those files have them open.
      absl::MutexLock lock(&mutex_);
      SetManifest(entries_.find(name)->second, manifest);
    }
    RemoveLeftovers(*opened, {&manifest});
    return opened;
  }();
  if (!directory.ok()) {
    absl::MutexLock lock(&mutex_);
    entries_.find(name)->second.is_busy = false;
    return directory.status();
  }
  return MakeWriter(*std::move(directory), std::move(manifest));
}

// Returns the manifest without the rows from `resume` on. A shard that the cut goes through gets a shorter successor.
absl::StatusOr<Manifest> Catalog::CutBack(Directory& directory, const Manifest& manifest, const ResumePoint& resume) {
  Manifest cut = manifest;
  while (!cut.shards.empty() && cut.shards.back().first_row >= resume.row) cut.shards.pop_back();
  cut.resume_row = resume.row;
  cut.resume_token = resume.token;
  if (cut.rows() <= resume.row) return cut;
  const ShardInfo last = cut.shards.back();
  const int64_t rows = resume.row - last.first_row;
  ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, directory.OpenFile(last.file));
  ASSIGN_OR_RETURN(std::unique_ptr<ShardWriter> writer, ShardWriter::Create(directory, manifest, last.first_row));
  ASSIGN_OR_RETURN(const ShardLayout layout, LayOutShard(manifest, last.first_row, last.end_row()));
  RETURN_IF_ERROR(CopyRows(layout, *file, rows, *writer));
  ASSIGN_OR_RETURN(cut.shards.back(), writer->Finish(manifest, rows));
  return cut;
}

std::unique_ptr<RecordingWriter> Catalog::MakeWriter(std::unique_ptr<Directory> directory, Manifest manifest) {
  const std::string name = manifest.name;
  RecordingWriter::Host host;
  host.charge = [this, name](int64_t bytes) { return Charge(name, bytes); };
  const auto set = [this, name](const Manifest& now, bool is_busy) {
    absl::MutexLock lock(&mutex_);
    Entry& entry = entries_.find(name)->second;
    // Once a shard is finished, the manifest counts what was charged for it.
    const int64_t finished = now.bytes() - entry.manifest->bytes();
    entry.charged_bytes = is_busy ? std::max<int64_t>(0, entry.charged_bytes - finished) : 0;
    SetManifest(entry, now);
    entry.is_busy = is_busy;
  };
  host.publish = [set](const Manifest& now) { set(now, true); };
  host.closed = [this, set](const Manifest& last, bool is_on_disk) {
    Manifest now = last;
    if (auto opened = root_->OpenDirectory(now.name); opened.ok()) {
      if (is_on_disk) {
        RemoveLeftovers(**opened, {&now});
      } else if (auto found = ReadManifest(**opened); found.ok()) {
        // After a power loss the disk may hold this manifest or the one before it.
        RemoveLeftovers(**opened, {&*found, Get(last.name)->get()});
        now = *std::move(found);
        now.state = last.state;
        now.error = last.error;
      }
    }
    set(now, false);
  };
  return std::make_unique<RecordingWriter>(std::move(directory), std::move(manifest), std::move(host));
}

absl::Status Catalog::Charge(const std::string& name, int64_t bytes, int64_t linked_bytes) {
  absl::MutexLock lock(&mutex_);
  const int64_t used = UsedBytes();
  const int64_t charged = bytes + linked_bytes;
  if (options_.quota_bytes > 0 && (used > options_.quota_bytes || charged > options_.quota_bytes - used)) {
    return absl::ResourceExhaustedError(absl::StrCat("recordings take ", used, " bytes and would need ", charged,
                                                     " more; the quota is ", options_.quota_bytes,
                                                     " (--recordings-quota-bytes)"));
  }
  ASSIGN_OR_RETURN(const int64_t free, root_->FreeBytes());
  if (free - bytes < options_.free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(root_->path(), ": ", free, " bytes are free and ", bytes,
                                                     " more are needed; ", options_.free_bytes,
                                                     " stay free (--recordings-free-bytes)"));
  }
  entries_.find(name)->second.charged_bytes += charged;
  return absl::OkStatus();
}

// A manifest may claim more bytes than there are, so sums stop at the end of the range instead of overflowing.
int64_t Catalog::UsedBytes() const {
  CheckedInt64 used = 0;
  for (const auto& [name, entry] : entries_) used += CheckedInt64(entry.used_bytes) + entry.charged_bytes;
  return used.value().value_or(std::numeric_limits<int64_t>::max());
}

int64_t Catalog::used_bytes() const {
  absl::MutexLock lock(&mutex_);
  return UsedBytes();
}

CatalogUsage Catalog::Usage() const {
  CatalogUsage usage;
  for (RecordingState state : kRecordingStates) usage.recordings[state] = 0;
  usage.quota_bytes = options_.quota_bytes;
  usage.kept_free_bytes = options_.free_bytes;
  // The lock is not held here, because a network file system can take long to answer.
  if (const absl::StatusOr<int64_t> free = root_->FreeBytes(); free.ok()) usage.free_bytes = *free;
  absl::MutexLock lock(&mutex_);
  usage.used_bytes = UsedBytes();
  for (const auto& [name, entry] : entries_) {
    if (entry.is_being_removed) continue;
    ++(entry.manifest == nullptr ? usage.unreadable : usage.recordings[entry.manifest->state]);
  }
  return usage;
}

absl::StatusOr<Catalog::Entry*> Catalog::Find(absl::string_view name) {
  RETURN_IF_ERROR(CheckRecordingName(name));
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.is_being_removed) {
    return absl::NotFoundError(absl::StrCat("no recording is called ", name));
  }
  return &found->second;
}

absl::StatusOr<std::shared_ptr<const Manifest>> Catalog::Get(absl::string_view name) const {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, const_cast<Catalog*>(this)->Find(name));
  if (entry->manifest == nullptr) return entry->damage;
  return entry->manifest;
}

std::vector<std::shared_ptr<const Manifest>> Catalog::List(absl::string_view after, int64_t count) const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Manifest>> manifests;
  for (auto it = entries_.upper_bound(after); it != entries_.end(); ++it) {
    if (static_cast<int64_t>(manifests.size()) == count) break;
    if (it->second.manifest != nullptr && !it->second.is_being_removed) manifests.push_back(it->second.manifest);
  }
  return manifests;
}

absl::StatusOr<std::shared_ptr<const RecordingReader>> Catalog::OpenReader(absl::string_view name) const {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, const_cast<Catalog*>(this)->Find(name));
  if (entry->manifest == nullptr) return entry->damage;
  if (entry->is_being_made) {
    return absl::AbortedError(absl::StrCat("recording ", name, " is being made; try again"));
  }
  // The mutex is held, so that a later removal of files sees that they are being read.
  ASSIGN_OR_RETURN(std::shared_ptr<RecordingFiles::Lease> lease,
                   entry->files->Read([&] { return OpenRecording(name); }));
  return std::make_shared<const RecordingReader>(entry->files, std::move(lease), entry->manifest, read_memory_);
}

absl::StatusOr<std::unique_ptr<Directory>> Catalog::OpenRecording(absl::string_view name) const {
  auto directory = root_->OpenDirectory(name);
  return absl::IsNotFound(directory.status()) ? GoneError(name) : std::move(directory);
}

absl::Status Catalog::RemoveFiles(absl::string_view name) {
  auto directory = root_->OpenDirectory(name);
  // Another call removed it meanwhile.
  if (absl::IsNotFound(directory.status())) return absl::OkStatus();
  RETURN_IF_ERROR(directory.status());
  // The manifest is removed first: without it, whatever an interrupted removal leaves counts as leftovers.
  absl::Status removed = (*directory)->Remove(kManifestFile);
  if (!absl::IsNotFound(removed)) RETURN_IF_ERROR(removed);
  RETURN_IF_ERROR((*directory)->Sync());
  RemoveLeftovers(**directory, {});
  directory->reset();
  removed = root_->RemoveDirectory(name);
  if (!absl::IsNotFound(removed)) RETURN_IF_ERROR(removed);
  return root_->Sync();
}

absl::StatusOr<int64_t> Catalog::Delete(absl::string_view name) {
  std::shared_ptr<RecordingFiles> files;
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(Entry * entry, Find(name));
    if (entry->is_busy) {
      return absl::FailedPreconditionError(absl::StrCat("recording ", name, " is being written; stop it first"));
    }
    entry->is_busy = entry->is_being_removed = true;
    files = entry->files;
  }
  // This must come before the files are removed, so that readers have them open.
  if (files != nullptr) files->SetManifest(nullptr);
  absl::Status removed = RemoveFiles(name);
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  Entry& entry = found->second;
  if (!removed.ok() && !absl::IsFailedPrecondition(removed)) {
    entry.is_busy = entry.is_being_removed = false;
    if (files != nullptr) files->SetManifest(entry.manifest);
    return removed;
  }
  const int64_t bytes = entry.manifest == nullptr ? 0 : entry.manifest->bytes();
  entries_.erase(found);
  if (!removed.ok()) return removed;
  return bytes;
}

}  // namespace hookline
