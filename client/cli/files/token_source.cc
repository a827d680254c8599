#include "client/cli/files/token_source.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/files/byte_reader.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/dataset/dataset.h"

namespace hookline::cli {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;
// No 32-bit id has as many digits; a longer word cannot be an id and is not kept.
constexpr size_t kMaxIdCharacters = 32;

// Reads one sequence from each line, ids separated by white space or commas. Skips empty lines.
class TextSource final : public TokenSource {
 public:
  TextSource(std::optional<uint32_t> prepend_token, std::unique_ptr<ByteReader> reader)
      : TokenSource(reader->name(), prepend_token), reader_(std::move(reader)) {}

  void Stop() override { reader_->Stop(); }
  std::optional<int64_t> total_ids() const override { return std::nullopt; }

 protected:
  absl::StatusOr<bool> Read(v1::TokenSequence* sequence) override {
    const int before = sequence->ids_size();
    std::string word;
    while (true) {
      if (at_ == end_) {
        at_ = 0;
        ASSIGN_OR_RETURN(end_, reader_->Read(absl::MakeSpan(buffer_)));
        if (!std::exchange(begun_, true)) RETURN_IF_ERROR(SkipByteOrderMark());
        if (at_ == end_ && end_ != 0) continue;
      }
      const bool ended = end_ == 0;
      const char c = ended ? '\n' : buffer_[at_++];
      if (c != ',' && !absl::ascii_isspace(static_cast<unsigned char>(c))) {
        if (word.size() == kMaxIdCharacters) return NoId(word);
        word.push_back(c);
        continue;
      }
      if (!word.empty()) {
        uint32_t id;
        if (!absl::ascii_isdigit(static_cast<unsigned char>(word[0])) || !absl::SimpleAtoi(word, &id)) {
          return NoId(word);
        }
        if (sequence->ids_size() - before == kMaxSequenceIds) {
          return absl::InvalidArgumentError(
              absl::StrCat(Place(), "more than ", kMaxSequenceIds, " ids; put each sequence on a line of its own"));
        }
        sequence->add_ids(id);
        word.clear();
      }
      if (c != '\n') continue;
      if (sequence->ids_size() > before) {
        last_line_ = line_;
        if (!ended) ++line_;
        return true;
      }
      if (ended) return false;
      ++line_;
    }
  }

  absl::Status Rewind() override {
    at_ = end_ = 0;
    line_ = 1;
    begun_ = false;
    return reader_->Rewind();
  }

  std::string LastPlace() const override { return absl::StrCat("line ", last_line_); }

 private:
  // Skips the byte order mark of UTF-8. Refuses UTF-16, whose digits are not single bytes.
  absl::Status SkipByteOrderMark() {
    const absl::string_view text(buffer_.data(), end_);
    if (absl::StartsWith(text, "\xef\xbb\xbf")) at_ = 3;
    if (absl::StartsWith(text, "\xff\xfe") || absl::StartsWith(text, "\xfe\xff")) {
      return absl::InvalidArgumentError(
          absl::StrCat(reader_->name(), ": text in UTF-16, as its byte order mark says; save it as UTF-8"));
    }
    return absl::OkStatus();
  }

  std::string Place() const { return absl::StrCat(reader_->name(), ", line ", line_, ": "); }

  absl::Status NoId(const std::string& word) const {
    return absl::InvalidArgumentError(absl::StrCat(
        Place(), Quoted(word),
        " is not a token id (0 to 4294967295); separate ids by spaces or commas, or set --token-format: to bytes for a "
        "text, or to the type of binary ids, such as uint16"));
  }

  const std::unique_ptr<ByteReader> reader_;
  std::vector<char> buffer_ = std::vector<char>(kReadBytes);
  size_t at_ = 0;
  size_t end_ = 0;
  int64_t line_ = 1;
  int64_t last_line_ = 0;
  bool begun_ = false;
};

// Reads each byte as a token; the last sequence can be shorter.
class BytesSource final : public TokenSource {
 public:
  BytesSource(std::optional<uint32_t> prepend_token, std::unique_ptr<ByteReader> reader, int64_t sequence_length)
      : TokenSource(reader->name(), prepend_token),
        reader_(std::move(reader)),
        buffer_(static_cast<size_t>(sequence_length)) {}

  void Stop() override { reader_->Stop(); }

  std::optional<int64_t> total_ids() const override {
    if (!reader_->size().has_value()) return std::nullopt;
    const int64_t bytes = *reader_->size();
    const auto length = static_cast<int64_t>(buffer_.size());
    return TotalIds(bytes, (bytes + length - 1) / length);
  }

 protected:
  absl::StatusOr<bool> Read(v1::TokenSequence* sequence) override {
    size_t filled = 0;
    while (filled < buffer_.size()) {
      ASSIGN_OR_RETURN(size_t got, reader_->Read(absl::MakeSpan(buffer_).subspan(filled)));
      if (got == 0) break;
      filled += got;
    }
    for (size_t i = 0; i < filled; ++i) sequence->add_ids(static_cast<uint8_t>(buffer_[i]));
    end_ += static_cast<int64_t>(filled);
    last_bytes_ = static_cast<int64_t>(filled);
    return filled > 0;
  }

  absl::Status Rewind() override {
    end_ = 0;
    return reader_->Rewind();
  }

  std::string LastPlace() const override { return absl::StrCat("bytes ", end_ - last_bytes_, " to ", end_ - 1); }

 private:
  const std::unique_ptr<ByteReader> reader_;
  std::vector<char> buffer_;
  int64_t end_ = 0;  // of the bytes read
  int64_t last_bytes_ = 0;
};

// Reads the rows of a 2-D array, or a 1-D array cut into sequences, of which the last can be shorter.
class ArraySource final : public TokenSource {
 public:
  ArraySource(std::string name, std::optional<uint32_t> prepend_token, std::unique_ptr<const Dataset> dataset,
              int64_t sequence_length)
      : TokenSource(std::move(name), prepend_token), dataset_(std::move(dataset)), length_(sequence_length) {}

  void Stop() override { stopped_ = true; }

  std::optional<int64_t> total_ids() const override {
    return TotalIds(dataset_->tokens(), (dataset_->tokens() + length_ - 1) / length_);
  }

 protected:
  absl::StatusOr<bool> Read(v1::TokenSequence* sequence) override {
    if (stopped_) return absl::CancelledError("reading was stopped");
    const int64_t first = index_ * length_;
    const int64_t ids = std::min(length_, dataset_->tokens() - first);
    if (ids <= 0) return false;
    ids_.resize(static_cast<size_t>(ids));
    if (ids == length_) {
      RETURN_IF_ERROR(dataset_->ReadSequence(index_, kAnyId, absl::MakeSpan(ids_)));
    } else {
      for (int64_t i = 0; i < ids; ++i) {
        RETURN_IF_ERROR(dataset_->ReadSequence(first + i, kAnyId, absl::MakeSpan(ids_).subspan(i, 1)));
      }
    }
    sequence->mutable_ids()->Add(ids_.begin(), ids_.end());
    ++index_;
    return true;
  }

  absl::Status Rewind() override {
    index_ = 0;
    stopped_ = false;
    return absl::OkStatus();
  }

  std::string LastPlace() const override {
    const int64_t first = (index_ - 1) * length_;
    if (dataset_->row_length() > 0) return absl::StrCat("row ", index_ - 1);
    return absl::StrCat("tokens ", first, " to ", std::min(first + length_, dataset_->tokens()) - 1);
  }

 private:
  // The server checks ids against its model's vocabulary.
  static constexpr int64_t kAnyId = int64_t{1} << 32;

  const std::unique_ptr<const Dataset> dataset_;
  const int64_t length_;
  std::atomic<bool> stopped_ = false;
  int64_t index_ = 0;
  std::vector<uint32_t> ids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> TokenSource::Open(const TokenSourceOptions& options) {
  if (options.format != TokenFormat::kText &&
      (options.sequence_length < 1 || options.sequence_length > kMaxSequenceIds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sequence-length: ", options.sequence_length, " is not between 1 and ", kMaxSequenceIds));
  }
  if (options.format == TokenFormat::kArray) {
    if (options.path == "-") {
      return absl::InvalidArgumentError("--tokens: .npy cannot be read from standard input; give its path");
    }
    const std::string type = options.array_type.empty() ? "" : absl::StrCat(":", options.array_type);
    ASSIGN_OR_RETURN(std::unique_ptr<const Dataset> dataset, Dataset::Open("tokens", options.path + type));
    const int64_t row = dataset->row_length();
    if (row > kMaxSequenceIds) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.path, ": rows of ", row, " ids; a sequence can have at most ", kMaxSequenceIds));
    }
    return std::make_unique<ArraySource>(options.path, options.prepend_token, std::move(dataset),
                                         row > 0 ? row : options.sequence_length);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ByteReader> reader, ByteReader::Open(options.path));
  if (options.format == TokenFormat::kText) {
    return std::make_unique<TextSource>(options.prepend_token, std::move(reader));
  }
  return std::make_unique<BytesSource>(options.prepend_token, std::move(reader), options.sequence_length);
}

absl::StatusOr<bool> TokenSource::Next(v1::TokenSequence* sequence) {
  sequence->clear_ids();
  if (prepend_token_.has_value()) sequence->add_ids(*prepend_token_);
  ASSIGN_OR_RETURN(bool more, Read(sequence));
  if (!more && next_index_ == 0) return absl::InvalidArgumentError(absl::StrCat(name_, ": holds no tokens"));
  if (!more) return false;
  if (next_index_ < kFirstSequences) first_ids_.insert(sequence->ids(0));
  ++next_index_;
  return true;
}

std::string TokenSource::PlaceOf(int64_t index) {
  v1::TokenSequence sequence;
  bool found = next_index_ == index + 1;
  if (!found && SeekTo(index).ok()) {
    absl::StatusOr<bool> more = Next(&sequence);
    found = more.ok() && *more;
  }
  return absl::StrCat(found ? LastPlace() : absl::StrCat("sequence ", index), " of ", name_);
}

absl::Status TokenSource::NamePlace(const absl::Status& status) {
  constexpr absl::string_view kPath = "tokens.sequences[";
  const absl::string_view message = status.message();
  const size_t path = message.find(kPath);
  const size_t what = message.find(": ", path == absl::string_view::npos ? 0 : path);
  if (path == absl::string_view::npos || what == absl::string_view::npos) return status;
  const absl::string_view index = message.substr(path + kPath.size(), what - path - kPath.size());
  int64_t sequence = 0;
  if (!absl::SimpleAtoi(index.substr(0, index.find(']')), &sequence)) return status;
  return absl::Status(status.code(), absl::StrCat(PlaceOf(sequence), message.substr(what)));
}

absl::Status TokenSource::SeekTo(int64_t index) {
  RETURN_IF_ERROR(Rewind());
  next_index_ = 0;
  v1::TokenSequence skipped;
  while (next_index_ < index) {
    ASSIGN_OR_RETURN(bool more, Next(&skipped));
    if (!more) {
      return absl::FailedPreconditionError(
          absl::StrCat("the tokens now end at sequence ", next_index_, ", but the capture has read to ", index));
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline::cli
