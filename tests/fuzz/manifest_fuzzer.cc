// The input is a recording's manifest. If it can be parsed, shards of the lengths that it names are put beside it,
// verified and read.
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/base/file_system.h"
#include "server/recording/catalog.h"
#include "server/recording/manifest.h"
#include "server/recording/reader.h"
#include "server/recording/shard.h"
#include "tests/fuzz/input.h"

namespace {

namespace fs = std::filesystem;
using hookline::Manifest;

constexpr int64_t kMaxShardBytes = int64_t{256} << 10;
constexpr size_t kMaxShards = 16;

// Writes the shards. Returns false if there are many or long ones, which would only take time.
bool WriteShards(const Manifest& manifest, const fs::path& folder) {
  if (manifest.shards.size() > kMaxShards) return false;
  for (const hookline::ShardInfo& shard : manifest.shards) {
    const auto layout = hookline::LayOutShard(manifest, shard);
    hookline::CheckMessage(layout.status());
    if (!layout.ok() || layout->file_bytes > kMaxShardBytes) return false;
    std::ofstream file(folder / shard.file, std::ios::binary);
    file << layout->header << std::string(static_cast<size_t>(layout->file_bytes) - layout->header.size(), 'x');
  }
  return true;
}

void Read(const std::shared_ptr<const hookline::RecordingReader>& reader) {
  const Manifest& manifest = reader->manifest();
  for (size_t shard = 0; shard < manifest.shards.size(); ++shard) {
    hookline::CheckMessage(reader->VerifyShard(shard).status());
  }
  for (size_t i = 0; i < manifest.hook_points.size(); ++i) {
    const int hook_point = static_cast<int>(i);
    const int64_t rows = manifest.RowsOf(hook_point);
    if (rows == 0) continue;
    std::vector<uint8_t> row(static_cast<size_t>(manifest.LayoutOf(hook_point).bytes()));
    auto read = hookline::RowRead::OfHookPoint(reader, hook_point, {{rows - 1, 1, 0}}, row.data());
    hookline::CheckMessage(read.Finish());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const fs::path root = hookline::MakeDirectory();
  const absl::string_view text = hookline::AsText(data, bytes);
  const absl::StatusOr<Manifest> manifest = hookline::ParseManifest(text);
  hookline::CheckMessage(manifest.status());
  if (!manifest.ok()) return 0;
  const std::string formatted = hookline::FormatManifest(*manifest);
  const absl::StatusOr<Manifest> again = hookline::ParseManifest(formatted);
  if (!again.ok() || hookline::FormatManifest(*again) != formatted) __builtin_trap();

  const fs::path folder = root / manifest->name;
  fs::create_directory(folder);
  std::ofstream(folder / hookline::kManifestFile, std::ios::binary) << text;
  if (WriteShards(*manifest, folder)) {
    auto directory = hookline::OpenDirectory(root);
    if (!directory.ok()) __builtin_trap();
    const auto catalog = hookline::Catalog::Open(*std::move(directory), {});
    if (!catalog.ok()) __builtin_trap();
    const auto reader = (*catalog)->OpenReader(manifest->name);
    hookline::CheckMessage(reader.status());
    if (reader.ok()) Read(*reader);
  }
  fs::remove_all(folder);
  return 0;
}
