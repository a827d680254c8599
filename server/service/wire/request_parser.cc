#include "server/service/wire/request_parser.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "hookline/v1/capture_service.pb.h"
#include "hookline/v1/recording_service.pb.h"
#include "server/base/status.h"
#include "server/capture/token_batch.h"
#include "server/service/wire/request_conversion.h"

namespace hookline {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// This holds the names and budgets of 4096 hook points several times over.
constexpr int kMaxBytesBesideTokens = 4 << 20;

absl::Status Malformed(absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat("the request is not a ", message, " message"));
}

bool IsMessage(uint32_t tag, int field) {
  return tag == WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

// Reads a length and calls `read` with the input limited to that many bytes. Returns false if fewer bytes follow, or if
// `read` returns false or leaves some.
template <typename Read>
bool ReadNested(CodedInputStream& input, Read read) {
  int bytes;
  if (!input.ReadVarintSizeAsInt(&bytes) || bytes > input.BytesUntilLimit()) return false;
  const CodedInputStream::Limit limit = input.PushLimit(bytes);
  const bool ok = read() && input.BytesUntilLimit() == 0;
  input.PopLimit(limit);
  return ok;
}

// Reads the whole of `message` with `read`.
template <typename Read>
bool ReadAll(grpc::ByteBuffer& message, Read read) {
  const int bytes = static_cast<int>(message.Length());
  grpc::ProtoBufferReader reader(&message);
  CodedInputStream input(&reader);
  input.PushLimit(bytes);
  return read(input) && input.BytesUntilLimit() == 0;
}

// Reads a TokenBatch. Tokens up to the limits are kept, those beyond them are only counted.
class TokenReader {
 public:
  explicit TokenReader(const TokenLimits& limits) : limits_(limits) {}

  // Reads what is left of `input` as a TokenBatch. Several are merged into one, as by protobuf.
  bool Read(CodedInputStream& input) {
    while (const uint32_t tag = input.ReadTag()) {
      if (!complete_ || !IsMessage(tag, v1::TokenBatch::kSequencesFieldNumber)) {
        if (!WireFormatLite::SkipField(&input, tag)) return false;
        continue;
      }
      const int64_t before = tokens_;
      if (!ReadNested(input, [&] { return ReadSequence(input); })) return false;
      if (++sequences_ <= limits_.max_request_sequences) batch_.EndSequence();
      complete_ = tokens_ > before;
    }
    return true;
  }

  absl::StatusOr<TokenBatch> Take() {
    RETURN_IF_ERROR(CheckTokenCounts(sequences_, tokens_, "tokens", limits_));
    return std::move(batch_);
  }

 private:
  bool ReadSequence(CodedInputStream& input);
  bool ReadId(CodedInputStream& input) {
    uint32_t id;
    if (!input.ReadVarint32(&id)) return false;
    if (++tokens_ <= limits_.max_request_tokens) batch_.Append(id);
    return true;
  }

  const TokenLimits& limits_;
  TokenBatch batch_;
  int64_t tokens_ = 0;
  int64_t sequences_ = 0;
  bool complete_ = true;  // no sequence so far was empty
};

bool TokenReader::ReadSequence(CodedInputStream& input) {
  const int field = v1::TokenSequence::kIdsFieldNumber;
  while (const uint32_t tag = input.ReadTag()) {
    if (IsMessage(tag, field)) {
      const bool ok = ReadNested(input, [&] {
        while (input.BytesUntilLimit() > 0) {
          if (!ReadId(input)) return false;
        }
        return true;
      });
      if (!ok) return false;
    } else if (tag == WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_VARINT)) {
      if (!ReadId(input)) return false;
    } else if (!WireFormatLite::SkipField(&input, tag)) {
      return false;
    }
  }
  return true;
}

// Reads a TextSource. Texts beyond the limit on sequences are counted, not kept: an empty text takes two bytes of a
// message and thirty of memory.
class TextReader {
 public:
  explicit TextReader(const TokenLimits& limits) : limits_(limits) {}

  // Reads what is left of `input` as a TextSource. Several are merged into one, as by protobuf.
  bool Read(CodedInputStream& input) {
    while (const uint32_t tag = input.ReadTag()) {
      uint32_t number = 0;
      if (IsMessage(tag, v1::TextSource::kTextsFieldNumber)) {
        std::string text;
        if (!WireFormatLite::ReadString(&input, &text)) return false;
        if (++count_ <= limits_.max_request_sequences) source_.texts.push_back(std::move(text));
      } else if (IsVarint(tag, v1::TextSource::kAddSpecialTokensFieldNumber)) {
        if (!input.ReadVarint32(&number)) return false;
        source_.add_special_tokens = number != 0;
      } else if (IsVarint(tag, v1::TextSource::kLongTextsFieldNumber)) {
        if (!input.ReadVarint32(&number)) return false;
        long_texts_ = static_cast<v1::LongTexts>(number);
      } else if (!WireFormatLite::SkipField(&input, tag)) {
        return false;
      }
    }
    return true;
  }

  absl::StatusOr<TextSource> Take() {
    RETURN_IF_ERROR(CheckTokenCounts(count_, /*tokens=*/0, "text", limits_));
    ASSIGN_OR_RETURN(source_.long_texts, FromProto(long_texts_));
    return std::move(source_);
  }

 private:
  static bool IsVarint(uint32_t tag, int field) {
    return tag == WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_VARINT);
  }

  const TokenLimits& limits_;
  TextSource source_;
  v1::LongTexts long_texts_ = v1::LONG_TEXTS_UNSPECIFIED;
  int64_t count_ = 0;
};

// A CaptureRequest whose tokens and texts have been read, and whose other fields are still encoded.
struct SplitRequest {
  explicit SplitRequest(const TokenLimits& limits) : tokens(limits), text(limits) {}

  bool has_tokens = false;
  TokenReader tokens;
  bool has_text = false;
  TextReader text;
  std::string other_fields;
};

bool ReadCaptureRequest(CodedInputStream& input, SplitRequest& request) {
  google::protobuf::io::StringOutputStream stream(&request.other_fields);
  google::protobuf::io::CodedOutputStream other_fields(&stream);
  while (const uint32_t tag = input.ReadTag()) {
    if (IsMessage(tag, v1::CaptureRequest::kTokensFieldNumber)) {
      request.has_tokens = true;
      if (!ReadNested(input, [&] { return request.tokens.Read(input); })) return false;
    } else if (IsMessage(tag, v1::CaptureRequest::kTextFieldNumber)) {
      request.has_text = true;
      if (!ReadNested(input, [&] { return request.text.Read(input); })) return false;
    } else if (!WireFormatLite::SkipField(&input, tag, &other_fields)) {
      return false;
    }
  }
  return true;
}

absl::StatusOr<CaptureRequest> Join(SplitRequest split) {
  if (split.other_fields.size() > kMaxBytesBesideTokens) {
    return absl::ResourceExhaustedError(absl::StrCat("the request takes ", split.other_fields.size(),
                                                     " bytes besides its tokens; at most ", kMaxBytesBesideTokens,
                                                     " are accepted"));
  }
  v1::CaptureRequest message;
  if (!message.ParseFromString(split.other_fields)) return Malformed("CaptureRequest");
  ASSIGN_OR_RETURN(CaptureRequest request, FromProto(message));
  if (split.has_text) {
    if (split.has_tokens || !std::holds_alternative<std::monostate>(request.source)) {
      return InvalidField("text", "given besides `tokens`, `dataset` or `feed`; a request has exactly one source");
    }
    ASSIGN_OR_RETURN(request.source, split.text.Take());
  }
  if (split.has_tokens) {
    if (!std::holds_alternative<std::monostate>(request.source)) {
      return InvalidField("tokens", "given besides `dataset` or `feed`; a request has exactly one source");
    }
    ASSIGN_OR_RETURN(request.source, split.tokens.Take());
  }
  return request;
}

}  // namespace

absl::StatusOr<CaptureRequest> ParseCaptureRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  SplitRequest request(limits);
  if (!ReadAll(message, [&](CodedInputStream& input) { return ReadCaptureRequest(input, request); })) {
    return Malformed("CaptureRequest");
  }
  return Join(std::move(request));
}

absl::StatusOr<PersistRequest> ParsePersistRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  SplitRequest request(limits);
  PersistRequest persist;
  const bool ok = ReadAll(message, [&](CodedInputStream& input) {
    while (const uint32_t tag = input.ReadTag()) {
      bool read;
      if (IsMessage(tag, v1::PersistRequest::kNameFieldNumber)) {
        read = WireFormatLite::ReadString(&input, &persist.name);
      } else if (IsMessage(tag, v1::PersistRequest::kCaptureFieldNumber)) {
        read = ReadNested(input, [&] { return ReadCaptureRequest(input, request); });
      } else if (IsMessage(tag, v1::PersistRequest::kPartFieldNumber)) {
        v1::RecordingPart part;
        read = ReadNested(input, [&] { return part.MergePartialFromCodedStream(&input); });
        persist.part = RecordingPart{part.index(), part.count(), 0, 0};
      } else {
        read = WireFormatLite::SkipField(&input, tag);
      }
      if (!read) return false;
    }
    return true;
  });
  if (!ok) return Malformed("PersistRequest");
  ASSIGN_OR_RETURN(persist.capture, Join(std::move(request)));
  return persist;
}

absl::StatusOr<CaptureRequest> ParseEstimateCaptureRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  SplitRequest request(limits);
  const bool ok = ReadAll(message, [&](CodedInputStream& input) {
    while (const uint32_t tag = input.ReadTag()) {
      const bool read = IsMessage(tag, v1::EstimateCaptureRequest::kCaptureFieldNumber)
                            ? ReadNested(input, [&] { return ReadCaptureRequest(input, request); })
                            : WireFormatLite::SkipField(&input, tag);
      if (!read) return false;
    }
    return true;
  });
  if (!ok) return Malformed("EstimateCaptureRequest");
  return Join(std::move(request));
}

absl::StatusOr<CaptureStreamMessage> ParseCaptureStreamRequest(grpc::ByteBuffer message, const TokenLimits& limits) {
  std::optional<SplitRequest> request;
  std::optional<TokenReader> tokens;
  std::optional<TextReader> text;
  const bool ok = ReadAll(message, [&](CodedInputStream& input) {
    while (const uint32_t tag = input.ReadTag()) {
      bool read;
      if (IsMessage(tag, v1::CaptureStreamRequest::kRequestFieldNumber)) {
        if (!request.has_value()) request.emplace(limits);
        read = ReadNested(input, [&] { return ReadCaptureRequest(input, *request); });
      } else if (IsMessage(tag, v1::CaptureStreamRequest::kTokensFieldNumber)) {
        if (!tokens.has_value()) tokens.emplace(limits);
        read = ReadNested(input, [&] { return tokens->Read(input); });
      } else if (IsMessage(tag, v1::CaptureStreamRequest::kTextFieldNumber)) {
        if (!text.has_value()) text.emplace(limits);
        read = ReadNested(input, [&] { return text->Read(input); });
      } else {
        read = WireFormatLite::SkipField(&input, tag);
      }
      if (!read) return false;
    }
    return true;
  });
  if (!ok) return Malformed("CaptureStreamRequest");
  const int kinds = request.has_value() + tokens.has_value() + text.has_value();
  if (kinds != 1) {
    return absl::InvalidArgumentError(kinds == 0
                                          ? "the message holds neither `request` nor `tokens` nor `text`"
                                          : "the message holds two of `request`, `tokens` and `text`; one is accepted");
  }
  if (tokens.has_value()) {
    ASSIGN_OR_RETURN(TokenBatch batch, tokens->Take());
    return CaptureStreamMessage(std::move(batch));
  }
  if (text.has_value()) {
    ASSIGN_OR_RETURN(TextSource source, text->Take());
    return CaptureStreamMessage(std::move(source));
  }
  ASSIGN_OR_RETURN(CaptureRequest joined, Join(std::move(*request)));
  // Built in place, since GCC 12 takes the members of the alternatives of a temporary for uninitialized.
  return absl::StatusOr<CaptureStreamMessage>(absl::in_place, std::move(joined));
}

}  // namespace hookline
