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
// The server encodes no longer texts.
constexpr size_t kMaxLineBytes = size_t{16} << 20;
// The fields beside the text may hold what they like; deeper than this nests no data set.
constexpr int kMaxJsonDepth = 64;
// Texts of one call: enough that the way to the server costs little, few enough that an answer stays below 4 MiB.
constexpr size_t kMaxTextsPerCall = 64;
constexpr size_t kMaxBytesPerCall = size_t{128} << 10;

class TextFile final : public TokenSource {
 public:
  TextFile(const TextFileOptions& options, std::unique_ptr<ByteReader> reader, EncodeTexts encode)
      : TokenSource(reader->name(), options.prepend_token),
        field_(options.field),
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
    auto& [line, text] = encoded_.front();
    if (text.ids_size() > kMaxSequenceIds) {
      return absl::InvalidArgumentError(
          absl::StrCat(Place(line), text.ids_size(), " tokens; at most ", kMaxSequenceIds, " make a sequence"));
    }
    sequence->mutable_ids()->MergeFrom(text.ids());
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

  // The next line without its end; none at the end of the file. Where `waits` is false also none if it is not there
  // yet.
  absl::StatusOr<std::optional<std::string>> NextLine(bool waits) {
    size_t searched = 0;
    while (true) {
      size_t end = unread_.find('\n', searched);
      if (end == std::string::npos && !ended_) {
        if (!waits) return std::nullopt;
        if (unread_.size() > kMaxLineBytes) {
          return absl::InvalidArgumentError(
              absl::StrCat(Place(line_ + 1), "more than ", kMaxLineBytes, " bytes; one text stands in one line"));
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
    if (field_.empty()) return line;
    const absl::StatusOr<nlohmann::json> object = ParseJsonObject(line, kMaxJsonDepth);
    const std::string why = object.ok() ? "" : absl::StrCat(" (it ", object.status().message(), ")");
    if (!object.ok() || !object->contains(field_) || !object->at(field_).is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Place(line_), "is not a JSON object whose `", field_, "` is a string", why));
    }
    return object->at(field_).get<std::string>();
  }

  // Encodes the lines that are there, at least one. False at the end.
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
      return absl::InternalError("the server answered with another number of sequences than it was sent texts");
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      encoded_.emplace_back(lines[i], std::move(*answer->mutable_sequences(static_cast<int>(i))));
    }
    return true;
  }

  const std::string field_;
  const std::unique_ptr<ByteReader> reader_;
  const EncodeTexts encode_;
  std::string unread_;
  bool ended_ = false;
  int64_t line_ = 0;
  int64_t last_line_ = 0;
  std::deque<std::pair<int64_t, v1::TokenizedText>> encoded_;  // with their lines
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTextFile(const TextFileOptions& options, EncodeTexts encode) {
  ASSIGN_OR_RETURN(std::unique_ptr<ByteReader> reader, ByteReader::Open(options.path));
  return std::make_unique<TextFile>(options, std::move(reader), std::move(encode));
}

}  // namespace hookline::cli
