#include "client/cli/files/row_files.h"

#include <zlib.h>

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cli/files/row_formats.h"
#include "client/cli/terminal/text_format.h"
#include "client/cpp/row_layout.h"
#include "server/base/status.h"
#include "server/formats/safetensors.h"

namespace hookline::cli {
namespace {

// File systems take 255 bytes; the rest is for the suffixes.
constexpr size_t kMaxStemBytes = 200;

const char* Suffix(FileFormat format) {
  return format == FileFormat::kNpy ? ".npy" : format == FileFormat::kPt ? ".pt" : ".safetensors";
}

template <typename To, typename Column>
absl::Status AppendColumn(ScratchFile& file, const Column& column) {
  const std::vector<To> values(column.begin(), column.end());
  return file.Append(values.data(), static_cast<int64_t>(values.size() * sizeof(To)));
}

}  // namespace

struct RowFiles::File {
  std::string name;  // in the directory
  int hook_point;    // index into started_
  int64_t header_bytes = 0;
  int64_t rows = 0;
  uint32_t crc32 = 0;  // of the values, for .pt
  std::unique_ptr<ScratchFile> scratch;
};

std::vector<std::string> FileNames(const std::vector<std::string>& hook_points, FileFormat format) {
  std::vector<std::string> names;
  std::set<std::string> taken;
  for (const std::string& hook_point : hook_points) {
    std::string stem = hook_point.substr(0, kMaxStemBytes);
    for (char& c : stem) {
      const bool safe = absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
      if (!safe || (c == '.' && format == FileFormat::kPt)) c = '_';
    }
    if (stem.empty() || stem[0] == '.' || stem[0] == '-') stem.insert(0, 1, '_');
    std::string name = stem + Suffix(format);
    for (int i = 2; !taken.insert(absl::AsciiStrToLower(name)).second; ++i)
      name = absl::StrCat(stem, "-", i, Suffix(format));
    names.push_back(std::move(name));
  }
  return names;
}

RowFiles::RowFiles(std::string directory, const v1::CaptureStarted& started, const RowFilesOptions& options)
    : directory_(std::move(directory)), started_(started), format_(options.format), provenance_(options.provenance) {}

RowFiles::~RowFiles() = default;

absl::StatusOr<std::unique_ptr<RowFiles>> RowFiles::Create(const std::string& directory,
                                                           const v1::CaptureStarted& started,
                                                           const RowFilesOptions& options) {
  if (options.format == FileFormat::kNpy && started.dtype() == v1::DTYPE_BFLOAT16) {
    return absl::InvalidArgumentError("--format npy: NumPy has no bfloat16; use pt or safetensors");
  }
  if (options.format != FileFormat::kSafetensors && !client::LayoutOf(started, 0).is_plain()) {
    return absl::InvalidArgumentError(absl::StrCat("--format: only safetensors holds rows of ",
                                                   DtypeName(started.dtype()),
                                                   started.top_k() > 0 ? " with top_k" : " with their scales"));
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot create the directory ", directory));
  }
  std::unique_ptr<RowFiles> files(new RowFiles(directory, started, options));
  std::vector<std::string> hook_points;
  for (const v1::HookPointGrant& grant : started.hook_points()) {
    if (absl::StartsWith(grant.hook_point(), "provenance/") || absl::StartsWith(grant.hook_point(), "__")) {
      return absl::InternalError(
          absl::StrCat("the server has a hook point ", grant.hook_point(), ", a name that safetensors files reserve"));
    }
    hook_points.push_back(grant.hook_point());
  }
  const std::vector<std::string> names = FileNames(hook_points, options.format);
  for (int i = 0; i < started.hook_points_size(); ++i) {
    auto file = std::make_unique<File>();
    file->name = names[i];
    file->hook_point = i;
    if (options.if_exists == IfExists::kRefuse &&
        std::filesystem::exists(absl::StrCat(directory, "/", names[i]), error)) {
      return absl::AlreadyExistsError(
          absl::StrCat(directory, "/", names[i], " exists; choose another --out, or give --overwrite"));
    }
    ASSIGN_OR_RETURN(file->scratch, ScratchFile::Create(TemporaryPath(directory, names[i])));
    file->header_bytes = files->ReservedBytes(*file);
    // Until Finish, spaces take the header's place, so that no program takes the file for a complete one.
    const std::string spaces(static_cast<size_t>(file->header_bytes), ' ');
    RETURN_IF_ERROR(file->scratch->Append(spaces.data(), static_cast<int64_t>(spaces.size())));
    files->files_.push_back(std::move(file));
  }
  if (options.provenance) {
    ASSIGN_OR_RETURN(files->sequence_, ScratchFile::Create(TemporaryPath(directory, "provenance-sequence")));
    ASSIGN_OR_RETURN(files->token_id_, ScratchFile::Create(TemporaryPath(directory, "provenance-token_id")));
    ASSIGN_OR_RETURN(files->position_, ScratchFile::Create(TemporaryPath(directory, "provenance-position")));
  }
  return files;
}

std::string RowFiles::path(int hook_point) const {
  return absl::StrCat(absl::StripSuffix(directory_, "/"), "/", files_[hook_point]->name);
}

const std::string& RowFiles::name(int hook_point) const { return files_[hook_point]->name; }

int64_t RowFiles::ReservedBytes(const File& file) const {
  if (format_ == FileFormat::kNpy) return kNpyHeaderBytes;
  if (format_ == FileFormat::kPt) return kPtHeaderBytes;
  // The header is longest if the whole budget arrives.
  const int64_t budget = started_.hook_points(file.hook_point).max_activations();
  return static_cast<int64_t>(Header(file, budget, v1::STOP_REASON_SOURCE_ENDED).size());
}

std::string RowFiles::Header(const File& file, int64_t rows, v1::StopReason stop_reason) const {
  const v1::HookPointGrant& grant = started_.hook_points(file.hook_point);
  const RowLayout layout = client::LayoutOf(started_, file.hook_point);
  std::vector<std::pair<std::string, std::string>> metadata = {
      {"format", "hookline-capture"},          {"version", "1"},
      {"hook_point", grant.hook_point()},      {"model", started_.model()},
      {"fingerprint", started_.fingerprint()}, {"stop_reason", StopReasonName(stop_reason)}};
  if (!layout.is_plain()) {
    metadata.emplace_back("dtype", DtypeName(started_.dtype()));
    metadata.emplace_back("width", absl::StrCat(layout.width));
    metadata.emplace_back("top_k", absl::StrCat(layout.top_k));
  }
  SafetensorsHeader header(metadata);
  int64_t offset = 0;
  const auto add = [&](absl::string_view name, absl::string_view dtype, absl::Span<const int64_t> shape,
                       int64_t bytes) {
    header.Add(name, dtype, shape, offset, offset + bytes);
    offset += bytes;
  };
  add(grant.hook_point(), SafetensorsDtype(layout), {rows, layout.is_plain() ? layout.width : layout.bytes()},
      rows * layout.bytes());
  if (provenance_) {
    add("provenance/sequence", "I64", {rows}, rows * 8);
    add("provenance/token_id", "I64", {rows}, rows * 8);
    add("provenance/position", "I32", {rows}, rows * 4);
  }
  return header.Encode(static_cast<size_t>(file.header_bytes));
}

absl::Status RowFiles::Append(const client::Chunk& chunk) {
  const v1::ActivationChunk& header = chunk.header();
  if (header.values_size() > 0) {
    return absl::InternalError("the server sent numbers (ENCODING_VALUES) where bytes were asked for");
  }
  if (provenance_) RETURN_IF_ERROR(AppendProvenance(header));
  File& file = *files_[chunk.hook_point_index()];
  RETURN_IF_ERROR(file.scratch->Append(chunk.pieces()));
  for (absl::Span<const uint8_t> piece : chunk.pieces()) {
    if (format_ == FileFormat::kPt) file.crc32 = static_cast<uint32_t>(crc32_z(file.crc32, piece.data(), piece.size()));
  }
  file.rows += header.rows();
  return absl::OkStatus();
}

absl::Status RowFiles::AppendProvenance(const v1::ActivationChunk& header) {
  if (header.sequence_size() == 0) return absl::InternalError("the server sent a chunk without provenance");
  if (header.first_row() + header.rows() <= provenance_rows_) return absl::OkStatus();  // from another hook point
  const auto known = static_cast<int>(provenance_rows_ - header.first_row());
  if (known < 0) return absl::InternalError("the server's hook points are not row-aligned");
  const auto rest = [known](const auto& column) { return absl::MakeConstSpan(column).subspan(known); };
  RETURN_IF_ERROR(AppendColumn<int64_t>(*sequence_, rest(header.sequence())));
  RETURN_IF_ERROR(AppendColumn<int64_t>(*token_id_, rest(header.token_id())));
  RETURN_IF_ERROR(AppendColumn<int32_t>(*position_, rest(header.position())));
  provenance_rows_ = header.first_row() + header.rows();
  return absl::OkStatus();
}

absl::Status RowFiles::Complete(File& file, v1::StopReason stop_reason) {
  if (format_ != FileFormat::kSafetensors) {
    const v1::HookPointGrant& grant = started_.hook_points(file.hook_point);
    const RowMatrix matrix = {grant.hook_point(), client::LayoutOf(started_, file.hook_point).dtype, file.rows,
                              grant.width(), file.crc32};
    const std::string trailer = format_ == FileFormat::kPt ? PtTrailer(matrix) : "";
    RETURN_IF_ERROR(file.scratch->Append(trailer.data(), static_cast<int64_t>(trailer.size())));
    RETURN_IF_ERROR(file.scratch->Overwrite(format_ == FileFormat::kPt ? PtHeader(matrix) : NpyHeader(matrix)));
    return file.scratch->Sync();
  }
  if (provenance_) {
    RETURN_IF_ERROR(file.scratch->AppendFrom(*sequence_, file.rows * 8));
    RETURN_IF_ERROR(file.scratch->AppendFrom(*token_id_, file.rows * 8));
    RETURN_IF_ERROR(file.scratch->AppendFrom(*position_, file.rows * 4));
  }
  RETURN_IF_ERROR(file.scratch->Overwrite(Header(file, file.rows, stop_reason)));
  return file.scratch->Sync();
}

absl::Status RowFiles::Finish(v1::StopReason stop_reason) {
  for (auto& file : files_) RETURN_IF_ERROR(Complete(*file, stop_reason));
  sequence_.reset();
  token_id_.reset();
  position_.reset();
  for (int i = 0; i < static_cast<int>(files_.size()); ++i) RETURN_IF_ERROR(files_[i]->scratch->Keep(path(i)));
  return SyncDirectory(directory_);
}

}  // namespace hookline::cli
