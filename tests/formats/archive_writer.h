// Writes checkpoints byte by byte, valid ones and invalid ones.
#ifndef HOOKLINE_TESTS_FORMATS_ARCHIVE_WRITER_H_
#define HOOKLINE_TESTS_FORMATS_ARCHIVE_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hookline {

// A file for one test, which is removed with this object.
class ScratchFile {
 public:
  ScratchFile();
  ~ScratchFile();
  const std::string& path() const { return path_; }
  void Write(const std::string& bytes) const;

 private:
  std::string path_;
};

std::string ReadFile(const std::string& path);

// Returns the low `count` bytes of `value`, little-endian.
std::string Little(uint64_t value, int count);

// Writes a zip archive of stored entries. The headers of an entry can be made wrong.
class ZipWriter {
 public:
  struct Entry {
    std::string name;
    std::string data;
    uint16_t flags = 0;
    uint16_t method = 0;
    std::optional<uint32_t> crc = std::nullopt;     // else the right one
    std::optional<uint64_t> size = std::nullopt;    // in the central directory, else the right one
    std::optional<uint64_t> offset = std::nullopt;  // in the central directory, else the right one
    bool zip64 = false;                             // sizes and offset in an extra field
  };

  ZipWriter& Add(Entry entry);
  // With `zip64_end`, the zip64 records say where the directory is.
  std::string Write(bool zip64_end = false) const;

 private:
  std::vector<Entry> entries_;
};

// Writes the pickle of a state dict, opcode by opcode.
class Pickle {
 public:
  Pickle();  // protocol 2
  Pickle& Raw(const std::string& bytes);
  Pickle& Global(const std::string& module, const std::string& name);
  Pickle& String(const std::string& text);
  Pickle& Int(int64_t value);
  Pickle& Tuple(const std::vector<int64_t>& values);
  // Adds the persistent id of a storage.
  Pickle& Storage(const std::string& type, const std::string& key, int64_t values, const std::string& place = "cpu");
  struct Tensor {
    std::string type = "FloatStorage";
    std::string key = "0";
    int64_t storage_values = 0;
    int64_t offset = 0;
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
    std::string metadata = "";  // opcodes of the argument that torch has added since 2.0; empty: none
  };
  Pickle& Rebuild(const Tensor& tensor);
  // Returns an OrderedDict of one tensor, and STOP.
  static std::string StateDict(const std::string& name, const Tensor& tensor);
  std::string Stop() const;

 private:
  std::string bytes_;
};

// Returns a file as torch.save writes it: `pickle`, and storages "0", "1"...
std::string TorchFile(const std::string& pickle, const std::vector<std::string>& storages);

// Returns the four floats 0, 1, 2, 3.
std::string FourFloats();

}  // namespace hookline

#endif  // HOOKLINE_TESTS_FORMATS_ARCHIVE_WRITER_H_
