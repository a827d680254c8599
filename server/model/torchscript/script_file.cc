#include "server/model/torchscript/script_file.h"

#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/serialization/import.h>
#include <zlib.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "server/base/escape.h"
#include "server/base/hash.h"
#include "server/base/input_file.h"
#include "server/base/status.h"
#include "server/formats/zip_archive.h"
#include "server/model/load/checkpoint_file.h"
#include "server/model/torchscript/script_program.h"

namespace hookline {
namespace {

using caffe2::serialize::PyTorchStreamReader;

// The most bytes of an exception's message in an error.
constexpr size_t kMaxQuotedBytes = 500;

// The most code of one class or function. Generated code of large models has some hundred kilobytes.
constexpr size_t kMaxCodeBytes = 64 << 20;

// Lets LibTorch read the same open file that was checked.
class FileAdapter : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit FileAdapter(std::shared_ptr<const InputFile> file) : file_(std::move(file)) {}

  size_t size() const override { return static_cast<size_t>(file_->size()); }

  size_t read(uint64_t offset, void* out, size_t bytes, const char* /*what*/) const override {
    const absl::Status status =
        file_->ReadAt(static_cast<int64_t>(offset), absl::MakeSpan(static_cast<uint8_t*>(out), bytes));
    TORCH_CHECK(status.ok(), std::string(status.message()));
    return bytes;
  }

 private:
  const std::shared_ptr<const InputFile> file_;
};

// Returns XXH3-128 over the records, in hexadecimal, after checking each against its checksum.
absl::StatusOr<std::string> CheckRecords(const std::string& path,
                                         const absl::flat_hash_map<std::string, uint32_t>& checksums,
                                         PyTorchStreamReader& reader) {
  std::vector<std::string> names = reader.getAllRecords();
  std::sort(names.begin(), names.end());
  const bool has_code =
      std::any_of(names.begin(), names.end(), [](const std::string& name) { return absl::StartsWith(name, "code/"); });
  if (!has_code || !reader.hasRecord("data.pkl")) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": holds no TorchScript code, only ", names.size(),
        " other records; a state dict needs a directory with its config; a module must be saved with torch.jit.save"));
  }
  Xxh3 hash;
  for (const std::string& name : names) {
    auto [data, size] = reader.getRecord(name);
    const absl::string_view bytes(static_cast<const char*>(data.get()), size);
    auto checksum = checksums.find(name);
    if (checksum == checksums.end() ||
        crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()) != checksum->second) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": record ", Quoted(name), " is damaged: its CRC-32 does not match"));
    }
    if (absl::EndsWith(name, ".debug_pkl")) continue;
    if (absl::StartsWith(name, "code/")) {
      if (size > kMaxCodeBytes) {
        return absl::FailedPreconditionError(absl::StrCat(path, ": record ", Quoted(name), " has ", size,
                                                          " bytes; at most ", kMaxCodeBytes, " are read"));
      }
    }
    const uint64_t sizes[] = {name.size(), size};
    hash.Update(absl::Span<const uint8_t>(reinterpret_cast<const uint8_t*>(sizes), sizeof(sizes)));
    hash.Update(name);
    hash.Update(bytes);
  }
  return hash.hex();
}

}  // namespace

std::string OneLine(const std::exception& error) {
  std::string line = "unknown error";
  for (absl::string_view text : absl::StrSplit(error.what(), '\n')) {
    text = absl::StripAsciiWhitespace(text);
    // A C++ stack trace follows.
    if (absl::StartsWith(text, "Exception raised from ") || absl::StartsWith(text, "frame #")) break;
    if (!text.empty() && text.find_first_not_of("~<- HERE.") != absl::string_view::npos) line = std::string(text);
  }
  const bool cut = line.size() > kMaxQuotedBytes;
  return Escaped(line.substr(0, kMaxQuotedBytes)) + (cut ? "..." : "");
}

absl::StatusOr<ScriptFile> LoadScriptFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const InputFile> input, OpenCheckpointFile(path));
  uint8_t magic[4] = {};
  if (input->size() >= 4) RETURN_IF_ERROR(input->ReadAt(0, absl::MakeSpan(magic)));
  // LibTorch also loads flatbuffers, which nothing here would check.
  if (absl::string_view(reinterpret_cast<const char*>(magic), 4) != absl::string_view("PK\3\4", 4)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": not a TorchScript archive, as torch.jit.save writes them (a zip file)"));
  }
  ASSIGN_OR_RETURN(const auto entries, ZipArchive::Checksums(*input));
  // All entries are in one folder, which PyTorch's reader leaves out of their names.
  absl::flat_hash_map<std::string, uint32_t> checksums;
  for (const auto& [name, checksum] : entries) checksums[name.substr(name.find('/') + 1)] = checksum;
  try {
    ScriptFile file;
    std::vector<std::string> classes;
    {
      PyTorchStreamReader reader(std::make_shared<FileAdapter>(input));
      ASSIGN_OR_RETURN(file.fingerprint, CheckRecords(path, checksums, reader));
      absl::StatusOr<std::vector<std::string>> checked = CheckProgram(reader);
      if (!checked.ok()) return absl::FailedPreconditionError(absl::StrCat(path, ": ", checked.status().message()));
      classes = *std::move(checked);
    }
    // Loading runs code of the file, so the file must be the one that was checked.
    RETURN_IF_ERROR(input->CheckUnchanged());
    file.module = torch::jit::load(std::make_shared<FileAdapter>(input), c10::Device(c10::kCPU));
    RETURN_IF_ERROR(input->CheckUnchanged());
    Confine(*file.module._ivalue()->compilation_unit(), classes);
    for (torch::jit::Module submodule : file.module.modules()) {
      if (submodule.hasattr("training") && submodule.attr("training").isBool()) submodule.setattr("training", false);
    }
    return file;
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": cannot be loaded: ", OneLine(error)));
  }
}

}  // namespace hookline
