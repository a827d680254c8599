#include "client/cli/token_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/base/status.h"
#include "server/dataset/dataset.h"

namespace hookline::cli {
namespace {

// A line of this length is no line of token ids.
constexpr size_t kMaxLineBytes = size_t{64} << 20;

struct CloseFile {
  void operator()(FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};
using File = std::unique_ptr<FILE, CloseFile>;

absl::StatusOr<File> OpenFile(const std::string& path) {
  if (path == "-") return File(stdin);
  FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return absl::InvalidArgumentError(absl::StrCat("--tokens ", path, ": ", std::strerror(errno)));
  return File(file);
}

class IdFile : public TokenFile {
 public:
  IdFile(File file, TokenFileOptions options) : file_(std::move(file)), options_(std::move(options)) {}

  absl::StatusOr<std::optional<std::vector<uint32_t>>> Next() override {
    while (true) {
      ASSIGN_OR_RETURN(const bool more, ReadLine());
      if (!more) return std::nullopt;
      std::vector<uint32_t> ids;
      if (options_.prepend_token_id.has_value()) ids.push_back(*options_.prepend_token_id);
      const size_t prepended = ids.size();
      for (size_t at = 0; at < line_.size();) {
        const size_t begin = line_.find_first_not_of(" ,\t\r[]", at);
        if (begin == std::string::npos) break;
        at = std::min(line_.find_first_of(" ,\t\r[]", begin), line_.size());
        const absl::string_view word(line_.data() + begin, at - begin);
        uint32_t id;
        if (!absl::SimpleAtoi(word, &id)) {
          return absl::InvalidArgumentError(
              absl::StrCat("--tokens ", options_.path, ": line ", number_, ": '", word.substr(0, 40),
                           "' is no token id; give ids separated by spaces, one sequence a line (--token-format "
                           "bytes reads text for a byte-level model)"));
        }
        ids.push_back(id);
      }
      if (ids.size() > prepended) return ids;
    }
  }

 private:
  absl::StatusOr<bool> ReadLine() {
    line_.clear();
    for (int c; (c = std::getc(file_.get())) != EOF;) {
      if (c == '\n') {
        ++number_;
        return true;
      }
      if (line_.size() == kMaxLineBytes) {
        return absl::InvalidArgumentError(absl::StrCat("--tokens ", options_.path, ": line ", number_ + 1,
                                                       " is longer than ", kMaxLineBytes, " bytes"));
      }
      line_.push_back(static_cast<char>(c));
    }
    ++number_;
    return !line_.empty();
  }

  const File file_;
  const TokenFileOptions options_;
  std::string line_;
  int64_t number_ = 0;
};

class ByteFile : public TokenFile {
 public:
  ByteFile(File file, TokenFileOptions options) : file_(std::move(file)), options_(std::move(options)) {}

  absl::StatusOr<std::optional<std::vector<uint32_t>>> Next() override {
    std::vector<uint32_t> ids;
    if (options_.prepend_token_id.has_value()) ids.push_back(*options_.prepend_token_id);
    const size_t prepended = ids.size();
    for (int c; ids.size() - prepended < static_cast<size_t>(options_.sequence_length) &&
                (c = std::getc(file_.get())) != EOF;) {
      ids.push_back(static_cast<uint32_t>(c));
    }
    if (ids.size() == prepended) return std::nullopt;
    return ids;
  }

  std::optional<int64_t> tokens() const override {
    struct stat status;
    if (fstat(fileno(file_.get()), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
    const int64_t sequences = (status.st_size + options_.sequence_length - 1) / options_.sequence_length;
    return status.st_size + (options_.prepend_token_id.has_value() ? sequences : 0);
  }

 private:
  const File file_;
  const TokenFileOptions options_;
};

class NpyFile : public TokenFile {
 public:
  NpyFile(std::unique_ptr<const Dataset> dataset, Dataset::Cut cut, TokenFileOptions options)
      : dataset_(std::move(dataset)), cut_(cut), options_(std::move(options)) {}

  absl::StatusOr<std::optional<std::vector<uint32_t>>> Next() override {
    if (next_ == cut_.sequence_count) return std::nullopt;
    const size_t prepended = options_.prepend_token_id.has_value() ? 1 : 0;
    std::vector<uint32_t> ids(prepended + static_cast<size_t>(cut_.sequence_length));
    if (prepended != 0) ids[0] = *options_.prepend_token_id;
    dataset_->ReadSequence(next_++, absl::MakeSpan(ids).subspan(prepended));
    return ids;
  }

  std::optional<int64_t> tokens() const override {
    return cut_.sequence_count * (cut_.sequence_length + (options_.prepend_token_id.has_value() ? 1 : 0));
  }

 private:
  const std::unique_ptr<const Dataset> dataset_;
  const Dataset::Cut cut_;
  const TokenFileOptions options_;
  int64_t next_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const TokenFileOptions& options) {
  std::string format = options.format;
  if (format.empty()) format = absl::EndsWith(options.path, ".npy") ? "npy" : "ids";
  if (format == "npy") {
    if (options.path == "-") return absl::InvalidArgumentError("--tokens -: .npy is read from files, not from a pipe");
    ASSIGN_OR_RETURN(std::unique_ptr<const Dataset> dataset, Dataset::Open("tokens", options.path));
    const int64_t length = dataset->row_length() != 0 ? 0 : std::min(options.sequence_length, dataset->tokens());
    ASSIGN_OR_RETURN(const Dataset::Cut cut, dataset->CutInto(length));
    return std::make_unique<NpyFile>(std::move(dataset), cut, options);
  }
  ASSIGN_OR_RETURN(File file, OpenFile(options.path));
  if (format == "bytes") return std::make_unique<ByteFile>(std::move(file), options);
  return std::make_unique<IdFile>(std::move(file), options);
}

}  // namespace hookline::cli
