#include "tests/support/fake_disk.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/checked_math.h"
#include "server/base/status.h"

namespace hookline {

using Kind = DirectoryEntry::Kind;

// A file or a directory. `synced_*` is what the disk itself holds.
struct FakeDisk::Node {
  Kind kind = Kind::kFile;
  std::string contents;
  std::string synced_contents;
  int64_t modified = 0;  // number of the last operation that wrote to it
  int locks = 0;         // how many share it; -1: one holds it alone
  std::map<std::string, std::shared_ptr<Node>> entries;
  std::map<std::string, std::shared_ptr<Node>> synced_entries;
};

struct FakeDisk::State {
  std::shared_ptr<Node> root;
  std::mt19937_64 random;
  int64_t operations = 0;
  int64_t fail_at = 0;
  bool fail_once = false;
  absl::Status failure;
  int64_t act_at = 0;
  std::function<void()> action;
  int64_t capacity = std::numeric_limits<int64_t>::max();
  int64_t opened_files = 0;
  int64_t read_bytes = 0;

  absl::Status Operate() {
    if (++operations == act_at) action();
    if (fail_at != 0 && (fail_once ? operations == fail_at : operations >= fail_at)) return failure;
    return absl::OkStatus();
  }

  static int64_t Used(const Node& node) {
    int64_t bytes = static_cast<int64_t>(node.contents.size());
    for (const auto& [name, child] : node.entries) bytes += Used(*child);
    return bytes;
  }

  void Lose(Node& node, Loss loss) {
    if (node.kind == Kind::kFile) {
      switch (loss) {
        case Loss::kNothing:
          break;
        case Loss::kAll:
        case Loss::kContents:
          node.contents = node.synced_contents;
          break;
        case Loss::kRandom: {
          // Any page of what was written may have reached the disk before the power failed.
          constexpr size_t kPage = 16;
          std::string torn = node.synced_contents;
          const size_t length = node.contents.size() <= torn.size()
                                    ? node.contents.size()
                                    : torn.size() + random() % (node.contents.size() - torn.size() + 1);
          torn.resize(length, '\0');
          for (size_t at = 0; at < length; at += kPage) {
            if (random() % 2 == 0) torn.replace(at, std::min(kPage, length - at), node.contents, at, kPage);
          }
          torn.resize(length, '\0');
          node.contents = torn;
          break;
        }
      }
      node.synced_contents = node.contents;
      return;
    }
    if (loss == Loss::kAll) node.entries = node.synced_entries;
    if (loss == Loss::kRandom) {
      for (const auto& [name, child] : node.synced_entries) {
        if (node.entries.count(name) == 0 && random() % 2 == 0) node.entries[name] = child;
      }
      std::map<std::string, std::shared_ptr<Node>> kept;
      for (const auto& [name, child] : node.entries) {
        const auto synced = node.synced_entries.find(name);
        const bool is_synced = synced != node.synced_entries.end() && synced->second == child;
        if (is_synced || random() % 2 == 0) {
          kept[name] = child;
        } else if (synced != node.synced_entries.end()) {
          kept[name] = synced->second;
        }
      }
      node.entries = std::move(kept);
    }
    node.synced_entries = node.entries;
    for (const auto& [name, child] : node.entries) Lose(*child, loss);
  }
};

namespace {

using Node = FakeDisk::Node;
using State = FakeDisk::State;

class FakeFile final : public WritableFile {
 public:
  FakeFile(std::shared_ptr<State> state, std::shared_ptr<Node> node)
      : state_(std::move(state)), node_(std::move(node)) {}

  absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> bytes) override {
    absl::Status status = state_->Operate();
    if (!status.ok()) bytes = bytes.subspan(0, bytes.size() / 2);
    node_->modified = state_->operations;
    const size_t end = offset + bytes.size();
    if (end > node_->contents.size()) {
      const int64_t room = state_->capacity - State::Used(*state_->root);
      if (static_cast<int64_t>(end - node_->contents.size()) > room) {
        return absl::ResourceExhaustedError("No space left on device");
      }
      node_->contents.resize(end, '\0');
    }
    std::copy(bytes.begin(), bytes.end(), node_->contents.begin() + offset);
    return status;
  }

  absl::Status Sync() override {
    RETURN_IF_ERROR(state_->Operate());
    node_->synced_contents = node_->contents;
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<State> state_;
  const std::shared_ptr<Node> node_;
};

class FakeReadableFile final : public ReadableFile {
 public:
  FakeReadableFile(std::shared_ptr<State> state, std::shared_ptr<Node> node, std::string path)
      : state_(std::move(state)), node_(std::move(node)), path_(std::move(path)) {}
  ~FakeReadableFile() override { --state_->opened_files; }

  const std::string& path() const override { return path_; }

  absl::StatusOr<FileFacts> Facts() const override {
    return FileFacts{static_cast<int64_t>(node_->contents.size()),
                     absl::UnixEpoch() + absl::Milliseconds(node_->modified)};
  }

  absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const override {
    state_->read_bytes += static_cast<int64_t>(out.size());
    if (!RangeFits(offset, out.size(), node_->contents.size())) {
      return absl::DataLossError(absl::StrCat(path_, ": the file ends before"));
    }
    std::copy_n(node_->contents.begin() + offset, out.size(), out.begin());
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<State> state_;
  const std::shared_ptr<Node> node_;
  const std::string path_;
};

class FakeDirectory final : public Directory {
 public:
  FakeDirectory(std::shared_ptr<State> state, std::shared_ptr<Node> node, std::string path)
      : state_(std::move(state)), node_(std::move(node)), path_(std::move(path)) {}
  ~FakeDirectory() override {
    if (holds_lock_) node_->locks = 0;
    if (shares_lock_) --node_->locks;
  }

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::unique_ptr<Directory>> OpenDirectory(absl::string_view name) override {
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Find(name));
    if (node->kind != Kind::kDirectory) return absl::FailedPreconditionError(absl::StrCat(name, ": not a directory"));
    return std::make_unique<FakeDirectory>(state_, std::move(node), absl::StrCat(path_, "/", name));
  }

  absl::Status MakeDirectory(absl::string_view name) override { return Add(name, Kind::kDirectory).status(); }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(absl::string_view name) override {
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Add(name, Kind::kFile));
    return std::make_unique<FakeFile>(state_, std::move(node));
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(absl::string_view name) override {
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Find(name));
    if (node->kind != Kind::kFile) return absl::FailedPreconditionError(absl::StrCat(name, ": not a regular file"));
    ++state_->opened_files;
    return std::make_unique<FakeReadableFile>(state_, std::move(node), absl::StrCat(path_, "/", name));
  }

  absl::Status Rename(absl::string_view from, absl::string_view to) override {
    RETURN_IF_ERROR(CheckFileName(to));
    RETURN_IF_ERROR(state_->Operate());
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Find(from));
    node_->entries.erase(std::string(from));
    node_->entries[std::string(to)] = std::move(node);
    return absl::OkStatus();
  }

  absl::Status Link(Directory& from, absl::string_view name, absl::string_view to) override {
    RETURN_IF_ERROR(CheckFileName(to));
    RETURN_IF_ERROR(state_->Operate());
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, static_cast<FakeDirectory&>(from).Find(name));
    if (!node_->entries.emplace(to, std::move(node)).second) {
      return absl::AlreadyExistsError(absl::StrCat(path_, "/", to, ": exists"));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(absl::string_view name) override {
    RETURN_IF_ERROR(state_->Operate());
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Find(name));
    if (node->kind != Kind::kFile) return absl::FailedPreconditionError(absl::StrCat(name, ": is a directory"));
    node_->entries.erase(std::string(name));
    return absl::OkStatus();
  }

  absl::Status RemoveDirectory(absl::string_view name) override {
    RETURN_IF_ERROR(state_->Operate());
    ASSIGN_OR_RETURN(std::shared_ptr<Node> node, Find(name));
    if (node->kind != Kind::kDirectory || !node->entries.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(name, ": not an empty directory"));
    }
    node_->entries.erase(std::string(name));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<DirectoryEntry>> List() override {
    std::vector<DirectoryEntry> entries;
    for (const auto& [name, child] : node_->entries) {
      entries.push_back({name, child->kind, static_cast<int64_t>(child->contents.size())});
    }
    return entries;
  }

  absl::Status Sync() override {
    RETURN_IF_ERROR(state_->Operate());
    node_->synced_entries = node_->entries;
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> FreeBytes() override { return state_->capacity - State::Used(*state_->root); }

  absl::Status Lock() override {
    if (node_->locks != 0 && !holds_lock_) return absl::FailedPreconditionError("in use by another process");
    node_->locks = -1;
    holds_lock_ = true;
    return absl::OkStatus();
  }

  absl::Status LockShared() override {
    if (node_->locks < 0) return absl::FailedPreconditionError("in use by another process");
    ++node_->locks;
    shares_lock_ = true;
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::shared_ptr<Node>> Find(absl::string_view name) {
    RETURN_IF_ERROR(CheckFileName(name));
    const auto found = node_->entries.find(std::string(name));
    if (found == node_->entries.end()) return absl::NotFoundError(absl::StrCat(path_, "/", name, ": not found"));
    return found->second;
  }

  absl::StatusOr<std::shared_ptr<Node>> Add(absl::string_view name, Kind kind) {
    RETURN_IF_ERROR(CheckFileName(name));
    RETURN_IF_ERROR(state_->Operate());
    auto node = std::make_shared<Node>();
    node->kind = kind;
    node->modified = state_->operations;
    if (!node_->entries.emplace(name, node).second) {
      return absl::AlreadyExistsError(absl::StrCat(path_, "/", name, ": exists"));
    }
    return node;
  }

  const std::shared_ptr<State> state_;
  const std::shared_ptr<Node> node_;
  const std::string path_;
  bool holds_lock_ = false;
  bool shares_lock_ = false;
};

void CollectFiles(const Node& node, const std::string& path, std::map<std::string, std::string>& files) {
  for (const auto& [name, child] : node.entries) {
    const std::string child_path = path.empty() ? name : absl::StrCat(path, "/", name);
    if (child->kind == Kind::kFile) files[child_path] = child->contents;
    CollectFiles(*child, child_path, files);
  }
}

}  // namespace

FakeDisk::FakeDisk(uint64_t seed) : state_(std::make_shared<State>()) {
  state_->root = std::make_shared<Node>();
  state_->root->kind = Kind::kDirectory;
  state_->random.seed(seed);
}

FakeDisk::~FakeDisk() = default;

std::unique_ptr<Directory> FakeDisk::root() { return std::make_unique<FakeDirectory>(state_, state_->root, "/disk"); }

int64_t FakeDisk::operations() const { return state_->operations; }

void FakeDisk::FailAt(int64_t operation, absl::Status status) {
  state_->fail_at = operation;
  state_->fail_once = false;
  state_->failure = std::move(status);
}

void FakeDisk::BeforeOperation(int64_t operation, std::function<void()> action) {
  state_->act_at = operation;
  state_->action = std::move(action);
}

void FakeDisk::FailOnceAt(int64_t operation, absl::Status status) {
  FailAt(operation, std::move(status));
  state_->fail_once = true;
}

void FakeDisk::set_capacity(int64_t bytes) { state_->capacity = bytes; }

int64_t FakeDisk::used_bytes() const { return State::Used(*state_->root); }

int64_t FakeDisk::opened_files() const { return state_->opened_files; }

int64_t FakeDisk::read_bytes() const { return state_->read_bytes; }

void FakeDisk::LosePower(Loss loss) {
  state_->fail_at = 0;
  state_->Lose(*state_->root, loss);
}

std::map<std::string, std::string> FakeDisk::Files() const {
  std::map<std::string, std::string> files;
  CollectFiles(*state_->root, "", files);
  return files;
}

FakeDisk::Node& FakeDisk::FileAt(const std::string& path) {
  Node* node = state_->root.get();
  for (const absl::string_view part : absl::StrSplit(path, '/')) node = node->entries.at(std::string(part)).get();
  node->modified = ++state_->operations;
  return *node;
}

void FakeDisk::Overwrite(const std::string& path, size_t offset, absl::string_view bytes) {
  FileAt(path).contents.replace(offset, bytes.size(), bytes.data(), bytes.size());
}

void FakeDisk::Truncate(const std::string& path, size_t bytes) { FileAt(path).contents.resize(bytes); }

}  // namespace hookline
