#include "client/cli/files/text_file.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/files/byte_reader.h"
#include "server/base/json.h"
#include "server/base/status.h"

namespace hookline::cli {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;
// The server does not encode longer texts.
constexpr size_t kMaxLineBytes = size_t{16} << 20;
// The fields beside the text can hold anything, but no data set nests deeper than this.
constexpr int kMaxJsonDepth = 64;
// The texts of one call: enough to make the round trip cheap, few enough to keep the answer below 4 MiB.
constexpr size_t kMaxTextsPerCall = 64;
constexpr size_t kMaxBytesPerCall = size_t{128} << 10;

class TextFile final : public TokenSource {
 public:
  TextFile(const TextFileOptions& options, std::unique_ptr<ByteReader> reader, EncodeTexts encode)
      : TokenSource(reader->name(), options.prepend_token),
        options_(options),
        reader_(std::move(reader)),
        encode_(std::move(encode)) {}

  void Stop() override { reader_->Stop(); }
  std::optional<int64_t> total_ids() const override { return std::nullopt; }

 protected:
  absl::StatusOr<bool> Read(v1::TokenSequence* sequence) override {
    while (encoded_.empty()) {
      ASSIGN_OR_RETURN(const bool more, EncodeSome());
      if (!more) return false;
    }
    const auto& [line, ids] = encoded_.front();
    if (static_cast<int64_t>(ids.size()) > kMaxSequenceIds) {
      return absl::InvalidArgumentError(
          absl::StrCat(Place(line), ids.size(), " tokens; a sequence can have at most ", kMaxSequenceIds));
    }
    sequence->mutable_ids()->Add(ids.begin(), ids.end());
    last_line_ = line;
    encoded_.pop_front();
    return true;
  }

  absl::Status Rewind() override {
    encoded_.clear();
    unread_.clear();
    line_ = 0;
    ended_ = false;
    return reader_->Rewind();
  }

  std::string LastPlace() const override { return absl::StrCat("line ", last_line_); }

 private:
  std::string Place(int64_t line) const { return absl::StrCat(reader_->name(), ", line ", line, ": "); }

  // Returns the next line without its line break; none at the end of the file. If `waits` is false, returns none also
  // for a line that has not arrived yet.
  absl::StatusOr<std::optional<std::string>> NextLine(bool waits) {
    size_t searched = 0;
    while (true) {
      size_t end = unread_.find('\n', searched);
      if (end == std::string::npos && !ended_) {
        if (!waits) return std::nullopt;
        if (unread_.size() > kMaxLineBytes) {
          return absl::InvalidArgumentError(absl::StrCat(Place(line_ + 1), "more than ", kMaxLineBytes,
                                                         " bytes; put each text on a line of its own"));
        }
        searched = unread_.size();
        unread_.resize(searched + kReadBytes);
        ASSIGN_OR_RETURN(const size_t got, reader_->Read(absl::MakeSpan(unread_).subspan(searched)));
        unread_.resize(searched + got);
        ended_ = got == 0;
        continue;
      }
      if (end == std::string::npos) {
        if (unread_.empty()) return std::nullopt;
        end = unread_.size();
      }
      std::string line = unread_.substr(0, end);
      unread_.erase(0, std::min(end + 1, unread_.size()));
      if (++line_ == 1 && absl::StartsWith(line, "\xef\xbb\xbf")) line.erase(0, 3);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return line;
    }
  }

  absl::StatusOr<std::string> TextOf(const std::string& line) const {
    if (options_.field.empty()) return line;
    const absl::StatusOr<nlohmann::json> object = ParseJsonObject(line, kMaxJsonDepth);
    const std::string why = object.ok() ? "" : absl::StrCat(" (it ", object.status().message(), ")");
    if (!object.ok() || !object->contains(options_.field) || !object->at(options_.field).is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Place(line_), "is not a JSON object whose `", options_.field, "` is a string", why));
    }
    return object->at(options_.field).get<std::string>();
  }

  // Encodes the lines that have arrived, at least one. Returns false at the end.
  absl::StatusOr<bool> EncodeSome() {
    std::vector<std::string> texts;
    std::vector<int64_t> lines;
    for (size_t bytes = 0; texts.size() < kMaxTextsPerCall && bytes < kMaxBytesPerCall;) {
      ASSIGN_OR_RETURN(std::optional<std::string> line, NextLine(/*waits=*/texts.empty()));
      if (!line.has_value()) break;
      if (line->empty()) continue;
      ASSIGN_OR_RETURN(std::string text, TextOf(*line));
      bytes += text.size();
      texts.push_back(std::move(text));
      lines.push_back(line_);
    }
    if (texts.empty()) return false;
    absl::StatusOr<v1::TokenizeResponse> answer = encode_(texts);
    if (!answer.ok()) {
      return absl::Status(answer.status().code(), absl::StrCat(reader_->name(), ", lines ", lines.front(), " to ",
                                                               lines.back(), ": ", answer.status().message()));
    }
    if (answer->sequences_size() != static_cast<int>(texts.size())) {
      return absl::InternalError("the server's answer does not have one sequence for each text");
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      RETURN_IF_ERROR(AddSequences(lines[i], answer->sequences(static_cast<int>(i))));
    }
    return true;
  }

  // Adds a text's sequence, or its parts if it is longer than a sequence can be.
  absl::Status AddSequences(int64_t line, const v1::TokenizedText& text) {
    const int size = text.ids_size();
    if (options_.long_texts == LongTexts::kLeave || size <= options_.max_ids) {
      encoded_.emplace_back(line, std::vector<uint32_t>(text.ids().begin(), text.ids().end()));
      return absl::OkStatus();
    }
    // A special token that was added covers no characters of the text.
    const auto is_added = [&text](int i) { return text.special(i) && text.ends(i) == 0; };
    int begin = 0, end = size;
    while (begin < end && is_added(begin)) ++begin;
    while (end > begin && is_added(end - 1)) --end;
    const int64_t room = options_.max_ids - (begin + size - end);
    if (room < 1) {
      return absl::InvalidArgumentError(absl::StrCat(Place(line), begin + size - end,
                                                     " special tokens are added, but a sequence can have only ",
                                                     options_.max_ids));
    }
    const auto ids = text.ids().begin();
    for (int64_t at = begin; at < end; at += room) {
      std::vector<uint32_t> part(ids, ids + begin);
      part.insert(part.end(), ids + at, ids + std::min<int64_t>(end, at + room));
      part.insert(part.end(), ids + end, ids + size);
      encoded_.emplace_back(line, std::move(part));
      if (options_.long_texts == LongTexts::kTruncate) break;
    }
    return absl::OkStatus();
  }

  const TextFileOptions options_;
  const std::unique_ptr<ByteReader> reader_;
  const EncodeTexts encode_;
  std::string unread_;
  bool ended_ = false;
  int64_t line_ = 0;
  int64_t last_line_ = 0;
  std::deque<std::pair<int64_t, std::vector<uint32_t>>> encoded_;  // line, ids
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTextFile(const TextFileOptions& options, EncodeTexts encode) {
  ASSIGN_OR_RETURN(std::unique_ptr<ByteReader> reader, ByteReader::Open(options.path));
  return std::make_unique<TextFile>(options, std::move(reader), std::move(encode));
}

}  // namespace hookline::cli
