#include "tests/formats/archive_writer.h"

#include <unistd.h>
#include <zlib.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace hookline {

ScratchFile::ScratchFile() : path_(std::filesystem::temp_directory_path() / "hookline-checkpoint-XXXXXX") {
  const int file = mkstemp(path_.data());
  if (file >= 0) close(file);
}

ScratchFile::~ScratchFile() { std::remove(path_.c_str()); }

void ScratchFile::Write(const std::string& bytes) const {
  std::ofstream(path_, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string Little(uint64_t value, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

ZipWriter& ZipWriter::Add(Entry entry) {
  entries_.push_back(std::move(entry));
  return *this;
}

std::string ZipWriter::Write(bool zip64_end) const {
  std::string file, directory;
  for (const Entry& entry : entries_) {
    const uint64_t offset = file.size();
    const uint32_t crc = entry.crc.value_or(
        static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const uint8_t*>(entry.data.data()), entry.data.size())));
    // Data begins at a multiple of 64, as torch.save pads it.
    const size_t padding = (64 - (offset + 30 + entry.name.size() + 4) % 64) % 64;
    const std::string local_extra = Little(0x4246, 2) + Little(padding, 2) + std::string(padding, 'Z');
    file += Little(0x04034b50, 4) + Little(20, 2) + Little(entry.flags, 2) + Little(entry.method, 2) + Little(0, 4) +
            Little(crc, 4) + Little(entry.data.size(), 4) + Little(entry.data.size(), 4) +
            Little(entry.name.size(), 2) + Little(local_extra.size(), 2) + entry.name + local_extra + entry.data;
    const uint64_t size = entry.size.value_or(entry.data.size());
    const uint64_t place = entry.offset.value_or(offset);
    std::string extra;
    if (entry.zip64) extra = Little(1, 2) + Little(24, 2) + Little(size, 8) + Little(size, 8) + Little(place, 8);
    const uint64_t small = 0xffffffff;
    directory += Little(0x02014b50, 4) + Little(20, 2) + Little(20, 2) + Little(entry.flags, 2) +
                 Little(entry.method, 2) + Little(0, 4) + Little(crc, 4) + Little(entry.zip64 ? small : size, 4) +
                 Little(entry.zip64 ? small : size, 4) + Little(entry.name.size(), 2) + Little(extra.size(), 2) +
                 Little(0, 2) + Little(0, 2) + Little(0, 2) + Little(0, 4) + Little(entry.zip64 ? small : place, 4) +
                 entry.name + extra;
  }
  const uint64_t begin = file.size();
  file += directory;
  if (zip64_end) {
    const uint64_t end64 = file.size();
    file += Little(0x06064b50, 4) + Little(44, 8) + Little(45, 2) + Little(45, 2) + Little(0, 4) + Little(0, 4) +
            Little(entries_.size(), 8) + Little(entries_.size(), 8) + Little(directory.size(), 8) + Little(begin, 8);
    file += Little(0x07064b50, 4) + Little(0, 4) + Little(end64, 8) + Little(1, 4);
  }
  file += Little(0x06054b50, 4) + Little(0, 2) + Little(0, 2) + Little(zip64_end ? 0xffff : entries_.size(), 2) +
          Little(zip64_end ? 0xffff : entries_.size(), 2) + Little(zip64_end ? 0xffffffff : directory.size(), 4) +
          Little(zip64_end ? 0xffffffff : begin, 4) + Little(0, 2);
  return file;
}

Pickle::Pickle() : bytes_("\x80\x02") {}

Pickle& Pickle::Raw(const std::string& bytes) {
  bytes_ += bytes;
  return *this;
}

Pickle& Pickle::Global(const std::string& module, const std::string& name) {
  return Raw("c" + module + "\n" + name + "\n");
}

Pickle& Pickle::String(const std::string& text) { return Raw("X" + Little(text.size(), 4) + text); }

Pickle& Pickle::Int(int64_t value) {
  if (value >= INT32_MIN && value <= INT32_MAX) return Raw("J" + Little(static_cast<uint64_t>(value), 4));
  return Raw("\x8a\x08" + Little(static_cast<uint64_t>(value), 8));
}

Pickle& Pickle::Tuple(const std::vector<int64_t>& values) {
  Raw("(");
  for (int64_t value : values) Int(value);
  return Raw("t");
}

Pickle& Pickle::Storage(const std::string& type, const std::string& key, int64_t values, const std::string& place) {
  return Raw("(").String("storage").Global("torch", type).String(key).String(place).Int(values).Raw("tQ");
}

Pickle& Pickle::Rebuild(const Tensor& tensor) {
  Global("torch._utils", "_rebuild_tensor_v2").Raw("(");
  Storage(tensor.type, tensor.key, tensor.storage_values).Int(tensor.offset).Tuple(tensor.sizes).Tuple(tensor.strides);
  return Raw("\x89").Global("collections", "OrderedDict").Raw(")R" + tensor.metadata + "tR");
}

std::string Pickle::StateDict(const std::string& name, const Tensor& tensor) {
  return Pickle().Global("collections", "OrderedDict").Raw(")R").String(name).Rebuild(tensor).Raw("s").Stop();
}

std::string Pickle::Stop() const { return bytes_ + "."; }

std::string TorchFile(const std::string& pickle, const std::vector<std::string>& storages) {
  ZipWriter zip;
  zip.Add({"archive/data.pkl", pickle});
  for (size_t i = 0; i < storages.size(); ++i) zip.Add({"archive/data/" + std::to_string(i), storages[i]});
  zip.Add({"archive/version", "3\n"});
  return zip.Write();
}

std::string FourFloats() {
  const float values[] = {0, 1, 2, 3};
  return {reinterpret_cast<const char*>(values), sizeof(values)};
}

}  // namespace hookline
