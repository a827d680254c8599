#include "server/recording/catalog.h"

#include <algorithm>
#include <initializer_list>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/status.h"
#include "server/recording/shard.h"
#include "server/recording/shard_writer.h"

namespace hookline {
namespace {

// Removes temporary files, and shards that none of `manifests` names. What refuses to go stays: the next sweep finds it
// again.
void RemoveLeftovers(Directory& directory, std::initializer_list<const Manifest*> manifests) {
  std::set<std::string> named;
  for (const Manifest* manifest : manifests) {
    for (const ShardInfo& shard : manifest->shards) named.insert(shard.file);
  }
  const auto entries = directory.List();
  if (!entries.ok()) return;
  for (const DirectoryEntry& entry : *entries) {
    if (entry.kind == DirectoryEntry::Kind::kFile && IsLeftover(entry.name) && named.count(entry.name) == 0) {
      directory.Remove(entry.name).IgnoreError();
    }
  }
}

// A shard that is missing or too short or too long.
absl::Status CheckLengths(Directory& directory, const Manifest& manifest) {
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, directory.List());
  std::map<std::string, int64_t> lengths;
  for (const DirectoryEntry& entry : entries) {
    if (entry.kind == DirectoryEntry::Kind::kFile) lengths[entry.name] = entry.bytes;
  }
  for (const ShardInfo& shard : manifest.shards) {
    const auto found = lengths.find(shard.file);
    if (found == lengths.end()) return absl::DataLossError(absl::StrCat(shard.file, ": is missing"));
    if (found->second != shard.bytes) {
      return absl::DataLossError(
          absl::StrCat(shard.file, ": of ", found->second, " bytes; the manifest says ", shard.bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLastShard(Directory& directory, const Manifest& manifest) {
  RETURN_IF_ERROR(CheckLengths(directory, manifest));
  if (manifest.shards.empty()) return absl::OkStatus();
  const ShardInfo& last = manifest.shards.back();
  ASSIGN_OR_RETURN(const FileView view, directory.Map(last.file));
  const ShardLayout layout = LayOutShard(manifest, last.first_row, last.end_row());
  if (layout.file_bytes != static_cast<int64_t>(view.bytes.size()) || ShardChecksum(layout, view.bytes) != last.xxh3) {
    return absl::DataLossError(absl::StrCat(last.file, ": not as it was written"));
  }
  return absl::OkStatus();
}

absl::Status CheckHookPoints(const Manifest& manifest) {
  std::set<absl::string_view> names;
  for (const RecordedHookPoint& point : manifest.hook_points) {
    if (absl::StartsWith(point.name, "provenance/") || point.name == "__metadata__") {
      return InvalidField("hook_points", absl::StrCat(point.name, ": recordings keep this name for themselves"));
    }
    if (!names.insert(point.name).second) {
      return InvalidField("hook_points", absl::StrCat(point.name, ": given twice"));
    }
  }
  return absl::OkStatus();
}

int64_t ShardRows(const Manifest& manifest, int64_t shard_bytes) {
  int64_t row_bytes = kProvenanceRowBytes;
  for (const RecordedHookPoint& point : manifest.hook_points) row_bytes += point.width * DtypeBytes(manifest.dtype);
  return std::max<int64_t>(1, shard_bytes / row_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(std::unique_ptr<Directory> root, const CatalogOptions& options) {
  if (options.quota_bytes < 0 || options.free_bytes < 0 || options.shard_bytes <= 0) {
    return absl::InvalidArgumentError("recordings: quota and free bytes are 0 or more, shards have at least one byte");
  }
  RETURN_IF_ERROR(root->Lock());
  std::unique_ptr<Catalog> catalog(new Catalog(std::move(root), options));
  RETURN_IF_ERROR(catalog->Sweep());
  return catalog;
}

absl::Status Catalog::Sweep() {
  ASSIGN_OR_RETURN(const std::vector<DirectoryEntry> entries, root_->List());
  for (const DirectoryEntry& entry : entries) {
    if (entry.kind == DirectoryEntry::Kind::kDirectory && CheckRecordingName(entry.name).ok()) {
      SweepRecording(entry.name);
    } else {
      notes_.push_back(absl::StrCat(root_->path(), "/", entry.name, ": not a recording; left alone"));
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
      note("no manifest, and it holds what is not ours; left alone");
    }
    return;
  }
  if (manifest.ok() && manifest->name != name) {
    manifest = absl::DataLossError(absl::StrCat(kManifestFile, ": name: not ", name));
  }
  if (!manifest.ok()) {
    note(manifest.status().message());
    entries_[name].damage = absl::DataLossError(manifest.status().message());
    return;
  }
  RemoveLeftovers(**directory, {&*manifest});
  const RecordingState was = manifest->state;
  if (was == RecordingState::kRunning) manifest->state = RecordingState::kInterrupted;
  if (absl::Status lengths = CheckLengths(**directory, *manifest); !lengths.ok()) {
    note(lengths.message());
    manifest->state = RecordingState::kFailed;
    manifest->error = std::string(lengths.message());
  }
  if (manifest->state != was) {
    manifest->update_time = absl::Now();
    // A disk that is read-only keeps the old state, which the next sweep understands as well.
    if (absl::Status written = WriteManifest(**directory, *manifest); !written.ok()) note(written.message());
  }
  used_bytes_ += manifest->bytes();
  entries_[name].manifest = std::make_shared<const Manifest>(*std::move(manifest));
}

absl::StatusOr<std::unique_ptr<RecordingWriter>> Catalog::Create(Manifest manifest) {
  RETURN_IF_ERROR(CheckRecordingName(manifest.name));
  RETURN_IF_ERROR(CheckHookPoints(manifest));
  manifest.state = RecordingState::kRunning;
  manifest.shard_rows = ShardRows(manifest, options_.shard_bytes);
  manifest.shards.clear();
  manifest.resume_row = 0;
  manifest.create_time = manifest.update_time = absl::Now();
  // What cannot be read back must not be written.
  if (auto parsed = ParseManifest(FormatManifest(manifest)); !parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("recording: ", parsed.status().message()));
  }
  const auto exists = [&] { return absl::AlreadyExistsError(absl::StrCat("recording ", manifest.name, " exists")); };
  {
    absl::MutexLock lock(&mutex_);
    const auto [entry, is_new] = entries_.try_emplace(manifest.name);
    if (!is_new) return exists();
    entry->second.is_busy = true;
    entry->second.manifest = std::make_shared<const Manifest>(manifest);
  }
  auto directory = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(Charge(manifest.name, 0));
    RETURN_IF_ERROR(root_->MakeDirectory(manifest.name));
    RETURN_IF_ERROR(root_->Sync());
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> made, root_->OpenDirectory(manifest.name));
    RETURN_IF_ERROR(WriteManifest(*made, manifest));
    return made;
  }();
  if (!directory.ok()) {
    absl::MutexLock lock(&mutex_);
    entries_.erase(manifest.name);
    if (absl::IsAlreadyExists(directory.status())) return exists();
    if (auto left = root_->OpenDirectory(manifest.name); left.ok()) {
      (*left)->Remove(kManifestFile).IgnoreError();
      RemoveLeftovers(**left, {});
      root_->RemoveDirectory(manifest.name).IgnoreError();
    }
    return directory.status();
  }
  return MakeWriter(*std::move(directory), std::move(manifest));
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
    if (resume.has_value() && resume->row > manifest.rows()) {
      return absl::FailedPreconditionError(absl::StrCat("recording ", name, " has ", manifest.rows(),
                                                        " rows; the resume token continues after ", resume->row));
    }
    entry->is_busy = true;
  }
  auto directory = [&]() -> absl::StatusOr<std::unique_ptr<Directory>> {
    RETURN_IF_ERROR(Charge(std::string(name), 0));
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> opened, root_->OpenDirectory(name));
    RETURN_IF_ERROR(CheckLastShard(*opened, manifest));
    manifest.state = RecordingState::kRunning;
    manifest.error.clear();
    if (resume.has_value()) {
      ASSIGN_OR_RETURN(manifest, CutBack(*opened, manifest, *resume));
    }
    manifest.update_time = absl::Now();
    RETURN_IF_ERROR(WriteManifest(*opened, manifest));
    RemoveLeftovers(*opened, {&manifest});
    return opened;
  }();
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_.find(name)->second;
  if (!directory.ok()) {
    entry.is_busy = false;
    return directory.status();
  }
  used_bytes_ += manifest.bytes() - entry.manifest->bytes();
  entry.manifest = std::make_shared<const Manifest>(manifest);
  return MakeWriter(*std::move(directory), std::move(manifest));
}

// The manifest without the rows from `resume` on. A shard that the cut goes through gets a shorter successor.
absl::StatusOr<Manifest> Catalog::CutBack(Directory& directory, const Manifest& manifest, const ResumePoint& resume) {
  Manifest cut = manifest;
  while (!cut.shards.empty() && cut.shards.back().first_row >= resume.row) cut.shards.pop_back();
  cut.resume_row = resume.row;
  cut.resume_token = resume.token;
  if (cut.rows() <= resume.row) return cut;
  const ShardInfo last = cut.shards.back();
  const int64_t rows = resume.row - last.first_row;
  ASSIGN_OR_RETURN(const FileView view, directory.Map(last.file));
  ASSIGN_OR_RETURN(std::unique_ptr<ShardWriter> writer, ShardWriter::Create(directory, manifest, last.first_row));
  RETURN_IF_ERROR(CopyRows(LayOutShard(manifest, last.first_row, last.end_row()), view.bytes, rows, *writer));
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
    // What was charged for a shard is counted by the manifest once it is finished.
    const int64_t finished = now.bytes() - entry.manifest->bytes();
    used_bytes_ += finished;
    entry.charged_bytes = is_busy ? std::max<int64_t>(0, entry.charged_bytes - finished) : 0;
    entry.manifest = std::make_shared<const Manifest>(now);
    entry.is_busy = is_busy;
  };
  host.publish = [set](const Manifest& now) { set(now, true); };
  host.closed = [this, set](const Manifest& last, bool is_on_disk) {
    Manifest now = last;
    if (auto opened = root_->OpenDirectory(now.name); opened.ok()) {
      if (is_on_disk) {
        RemoveLeftovers(**opened, {&now});
      } else if (auto found = ReadManifest(**opened); found.ok()) {
        // After a power loss the disk may hold this one, or the one before it.
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

absl::Status Catalog::Charge(const std::string& name, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  const int64_t used = UsedBytes();
  if (options_.quota_bytes > 0 && used + bytes > options_.quota_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("recordings take ", used, " bytes and would need ", bytes,
                                                     " more; the quota is ", options_.quota_bytes,
                                                     " (--recordings-quota-bytes)"));
  }
  ASSIGN_OR_RETURN(const int64_t free, root_->FreeBytes());
  if (free - bytes < options_.free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(root_->path(), ": ", free, " bytes are free and ", bytes,
                                                     " more are needed; ", options_.free_bytes,
                                                     " stay free (--recordings-free-bytes)"));
  }
  entries_.find(name)->second.charged_bytes += bytes;
  return absl::OkStatus();
}

int64_t Catalog::UsedBytes() const {
  int64_t used = used_bytes_;
  for (const auto& [name, entry] : entries_) used += entry.charged_bytes;
  return used;
}

int64_t Catalog::used_bytes() const {
  absl::MutexLock lock(&mutex_);
  return UsedBytes();
}

absl::StatusOr<Catalog::Entry*> Catalog::Find(absl::string_view name) {
  RETURN_IF_ERROR(CheckRecordingName(name));
  const auto found = entries_.find(name);
  if (found == entries_.end()) return absl::NotFoundError(absl::StrCat("no recording is called ", name));
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
    if (it->second.manifest != nullptr) manifests.push_back(it->second.manifest);
  }
  return manifests;
}

absl::StatusOr<std::shared_ptr<const RecordingReader>> Catalog::OpenReader(absl::string_view name) const {
  // Between the manifest and the maps a writer may replace the last shard by a longer one; then there is a newer
  // manifest.
  constexpr int kTries = 3;
  absl::Status status;
  for (int i = 0; i < kTries; ++i) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest, Get(name));
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> directory, root_->OpenDirectory(name));
    auto reader = RecordingReader::Open(std::move(directory), *manifest);
    if (!absl::IsNotFound(reader.status())) return reader;
    status = absl::DataLossError(reader.status().message());
  }
  return status;
}

absl::StatusOr<int64_t> Catalog::Delete(absl::string_view name) {
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(Entry * entry, Find(name));
    if (entry->is_busy) {
      return absl::FailedPreconditionError(absl::StrCat("recording ", name, " is being written; stop it first"));
    }
    entry->is_busy = true;
  }
  const absl::Status removed = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(std::unique_ptr<Directory> directory, root_->OpenDirectory(name));
    // First the manifest: without it the rest is leftovers, whenever this is cut off.
    RETURN_IF_ERROR(directory->Remove(kManifestFile));
    RETURN_IF_ERROR(directory->Sync());
    RemoveLeftovers(*directory, {});
    directory.reset();
    RETURN_IF_ERROR(root_->RemoveDirectory(name));
    return root_->Sync();
  }();
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  Entry& entry = found->second;
  if (!removed.ok() && !absl::IsFailedPrecondition(removed) && !absl::IsNotFound(removed)) {
    entry.is_busy = false;
    return removed;
  }
  const int64_t bytes = entry.manifest == nullptr ? 0 : entry.manifest->bytes();
  used_bytes_ -= bytes;
  entries_.erase(found);
  if (!removed.ok()) return removed;
  return bytes;
}

}  // namespace hookline
