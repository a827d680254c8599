// Compares the speed of writing a recording with that of writing the same bytes raw: files of the same size, in writes
// as large as a chunk, each file synced, renamed and its directory synced; once without more ("raw") and once with each
// write sent to the disk at once, as the recording does ("raw, early").
//
//   recording_bench DIRECTORY [MIB_PER_ROUND [ROUNDS]]
//
// The ways alternate, since the speed of disks and neighbours varies; the figures are medians of the rounds' ratios.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/base/file_system.h"
#include "server/base/status.h"
#include "server/recording/catalog.h"

namespace hookline {
namespace {

constexpr int64_t kWidth = 768;
constexpr int64_t kHookPoints = 4;
constexpr int64_t kGroupRows = 340;  // chunks of just under 1 MiB
constexpr int64_t kShardBytes = int64_t{256} << 20;

std::vector<uint8_t> ChunkBytes() {
  std::vector<uint8_t> bytes(kGroupRows * kWidth * 4);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  return bytes;
}

struct Seconds {
  double wall = 0;
  double processor = 0;  // of this process, including the kernel's work for it
};

class Stopwatch {
 public:
  Seconds seconds() const { return {absl::ToDoubleSeconds(absl::Now() - start_), Processor() - processor_}; }

 private:
  static double Processor() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  }

  const absl::Time start_ = absl::Now();
  const double processor_ = Processor();
};

// Returns the seconds, and in `bytes` the size on the disk.
absl::StatusOr<Seconds> WriteRecording(const std::string& path, int64_t groups, int64_t* bytes) {
  const std::vector<uint8_t> chunk = ChunkBytes();
  ASSIGN_OR_RETURN(std::unique_ptr<Directory> root, OpenDirectory(path));
  CatalogOptions options;
  options.free_bytes = 0;
  options.shard_bytes = kShardBytes;
  ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, Catalog::Open(std::move(root), options));
  Manifest manifest;
  manifest.name = "bench";
  manifest.fingerprint = manifest.request_digest = std::string(32, '0');
  for (int64_t h = 0; h < kHookPoints; ++h) {
    manifest.hook_points.push_back({absl::StrCat("blocks.", h, ".hook_resid_post"), kWidth, groups * kGroupRows});
  }
  const Stopwatch stopwatch;
  ASSIGN_OR_RETURN(std::unique_ptr<RecordingWriter> writer, catalog->Create(std::move(manifest)));
  const std::vector<int64_t> sequence(kGroupRows);
  const std::vector<int32_t> position(kGroupRows);
  const std::vector<uint32_t> token_id(kGroupRows);
  const absl::Span<const uint8_t> data[] = {chunk};
  for (int64_t group = 0; group < groups; ++group) {
    for (int h = 0; h < kHookPoints; ++h) {
      RowsToRecord rows;
      rows.hook_point = h;
      rows.first_row = group * kGroupRows;
      rows.rows = kGroupRows;
      rows.data = data;
      rows.sequence = sequence;
      rows.position = position;
      rows.token_id = token_id;
      RETURN_IF_ERROR(writer->Append(rows));
    }
  }
  RETURN_IF_ERROR(writer->Close(RecordingState::kComplete, absl::OkStatus()));
  const Seconds seconds = stopwatch.seconds();
  *bytes = writer->manifest().bytes();
  writer.reset();
  RETURN_IF_ERROR(catalog->Delete("bench").status());
  return seconds;
}

// Writes a manifest as a recording does.
absl::Status WriteSmall(int directory) {
  const std::string text(2000, 'm');
  const int file = openat(directory, "small.tmp", O_WRONLY | O_CREAT | O_EXCL, 0666);
  const bool ok = file >= 0 && write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                  fdatasync(file) == 0 && close(file) == 0 &&
                  renameat(directory, "small.tmp", directory, "small") == 0 && fsync(directory) == 0;
  return ok ? absl::OkStatus() : absl::ErrnoToStatus(errno, "small");
}

// Says when written data goes to the disk. Writes are made by system calls, so that no code of Hookline runs on
// both sides.
enum class WriteOut { kBySync, kEarly };

absl::StatusOr<Seconds> WriteRaw(const std::string& path, int64_t bytes, WriteOut write_out) {
  const std::vector<uint8_t> chunk = ChunkBytes();
  const int directory = open(path.c_str(), O_RDONLY | O_DIRECTORY);
  const auto failed = [](const char* what) { return absl::ErrnoToStatus(errno, what); };
  if (directory < 0) return failed("open");
  const Stopwatch stopwatch;
  std::vector<std::string> names;
  if (fsync(directory) != 0) return failed("fsync");  // as for the recording's new directory
  RETURN_IF_ERROR(WriteSmall(directory));
  while (bytes > 0) {
    const int64_t file_bytes = std::min(bytes, kShardBytes);
    const int file = openat(directory, "raw.tmp", O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (file < 0) return failed("openat");
    for (int64_t at = 0; at < file_bytes;) {
      const ssize_t written = write(file, chunk.data(), std::min<int64_t>(chunk.size(), file_bytes - at));
      if (written < 0) return failed("write");
      if (write_out == WriteOut::kEarly) sync_file_range(file, at, written, SYNC_FILE_RANGE_WRITE);
      at += written;
    }
    if (fdatasync(file) != 0) return failed("fdatasync");
    close(file);
    names.push_back(absl::StrCat("raw-", names.size()));
    if (renameat(directory, "raw.tmp", directory, names.back().c_str()) != 0) return failed("renameat");
    if (fsync(directory) != 0) return failed("fsync");
    RETURN_IF_ERROR(WriteSmall(directory));
    bytes -= file_bytes;
  }
  RETURN_IF_ERROR(WriteSmall(directory));
  const Seconds seconds = stopwatch.seconds();
  names.push_back("small");
  for (const std::string& name : names) unlinkat(directory, name.c_str(), 0);
  close(directory);
  return seconds;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status Run(const std::string& path, int64_t mib, int rounds) {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  const int64_t groups = std::max<int64_t>(1, (mib << 20) / (kHookPoints * kGroupRows * kWidth * 4));
  absl::PrintF("%s, %s: %d hook points of %d floats, shards of %d MiB\n", host, path, kHookPoints, kWidth,
               kShardBytes >> 20);
  std::vector<double> ratios, early_ratios;
  for (int round = 0; round < rounds; ++round) {
    int64_t bytes = 0;
    ASSIGN_OR_RETURN(const Seconds recording, WriteRecording(path, groups, &bytes));
    ASSIGN_OR_RETURN(const Seconds raw, WriteRaw(path, bytes, WriteOut::kBySync));
    ASSIGN_OR_RETURN(const Seconds early, WriteRaw(path, bytes, WriteOut::kEarly));
    ratios.push_back(raw.wall / recording.wall);
    early_ratios.push_back(early.wall / recording.wall);
    const double megabytes = static_cast<double>(bytes) / 1e6;
    absl::PrintF(
        "%d MiB, MB/s: recording %.0f, raw %.0f (ratio %.3f), raw early %.0f (ratio %.3f); processor s: %.2f, %.2f, "
        "%.2f\n",
        bytes >> 20, megabytes / recording.wall, megabytes / raw.wall, ratios.back(), megabytes / early.wall,
        early_ratios.back(), recording.processor, raw.processor, early.processor);
  }
  absl::PrintF("median ratio to raw %.3f, to raw early %.3f (wanted: 0.9)\n", Median(ratios), Median(early_ratios));
  return absl::OkStatus();
}

}  // namespace
}  // namespace hookline

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: recording_bench DIRECTORY [MIB_PER_ROUND [ROUNDS]]\n");
    return 2;
  }
  const absl::Status status =
      hookline::Run(argv[1], argc > 2 ? std::atoll(argv[2]) : 512, argc > 3 ? std::atoi(argv[3]) : 5);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
