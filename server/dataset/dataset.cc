#include "server/dataset/dataset.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/hash.h"
#include "server/base/status.h"
#include "server/formats/npy.h"

namespace hookline {
namespace {

struct TokenType {
  TokenDtype dtype;
  absl::string_view name;
  absl::string_view npy_descr;
  int64_t bytes;
};

constexpr TokenType kTokenTypes[] = {
    {TokenDtype::kUint8, "uint8", "|u1", 1}, {TokenDtype::kUint16, "uint16", "<u2", 2},
    {TokenDtype::kInt32, "int32", "<i4", 4}, {TokenDtype::kUint32, "uint32", "<u4", 4},
    {TokenDtype::kInt64, "int64", "<i8", 8}, {TokenDtype::kUint64, "uint64", "<u8", 8},
};
constexpr absl::string_view kAcceptedTypes = "uint8, uint16, int32, uint32, int64 or uint64";

// The first bytes of files of other formats, and what to say of them. Read as token ids, such files would be noise.
constexpr struct {
  absl::string_view start, what;
} kOtherFormats[] = {
    {absl::string_view("PK\x03\x04", 4), "a zip archive (.npz, .pt); save its array with numpy.save"},
    {"PAR1", "a Parquet file; save its ids with numpy.save"},
    {"ARROW1", "an Arrow file; save its ids with numpy.save"},
    {"MMIDIDX", "the index of a Megatron dataset; name the .bin file beside it"},
    {"LITPKDS", "a packed dataset of litgpt; save its ids with numpy.save"},
};

// The header that llm.c and its relatives write before the ids: 256 int32, the first three of them a magic number, a
// version, and how many ids follow (llm.c, dev/data/data_common.py).
constexpr int64_t kLlmcHeaderBytes = 1024;
constexpr struct {
  int32_t magic, version;
  TokenDtype dtype;
} kLlmcFormats[] = {{20240520, 1, TokenDtype::kUint16}, {20240801, 7, TokenDtype::kUint32}};

const TokenType& TypeOf(TokenDtype dtype) {
  return *std::find_if(std::begin(kTokenTypes), std::end(kTokenTypes),
                       [&](const TokenType& type) { return type.dtype == dtype; });
}

std::optional<TokenDtype> TypeNamed(absl::string_view name) {
  for (const TokenType& type : kTokenTypes) {
    if (type.name == name) return type.dtype;
  }
  return std::nullopt;
}

// Calls `body` with a value of the C++ type for `dtype`.
template <typename Body>
auto WithType(TokenDtype dtype, Body body) {
  switch (dtype) {
    case TokenDtype::kUint8:
      return body(uint8_t{});
    case TokenDtype::kUint16:
      return body(uint16_t{});
    case TokenDtype::kInt32:
      return body(int32_t{});
    case TokenDtype::kUint32:
      return body(uint32_t{});
    case TokenDtype::kInt64:
      return body(int64_t{});
    case TokenDtype::kUint64:
      return body(uint64_t{});
  }
  return body(uint8_t{});
}

template <typename T>
T Load(const uint8_t* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// This many tokens are read together: few enough that they stay in the processor's cache while they are checked
// and hashed.
constexpr int64_t kPieceTokens = int64_t{1} << 16;
constexpr uint64_t kLargestId = std::numeric_limits<uint32_t>::max();
// A file's form is recognized by this many bytes at its start: NumPy's header, llm.c's, or enough ids to judge.
constexpr int64_t kStartBytes = std::max<int64_t>(kMaxNpyHeaderEnd, int64_t{16} << 10);

// Names the place of token `index`, with its row if the file has rows.
std::string PlaceOf(int64_t index, int64_t row_length) {
  if (row_length == 0) return absl::StrCat("token ", index);
  return absl::StrCat("row ", index / row_length, ", column ", index % row_length, ": token ", index);
}

// Returns the largest of `count` ids, or an error that names the first value that is not an id. `first` is the index of
// the first one.
template <typename T>
absl::StatusOr<uint32_t> LargestId(const uint8_t* data, int64_t count, int64_t first, int64_t row_length) {
  T smallest = 0;
  T largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T id = Load<T>(data, i);
    smallest = std::min(smallest, id);
    largest = std::max(largest, id);
  }
  // A negative value becomes a large unsigned one.
  const auto is_id = [](T id) { return static_cast<uint64_t>(id) <= kLargestId; };
  if (is_id(smallest) && is_id(largest)) return static_cast<uint32_t>(largest);
  for (int64_t i = 0;; ++i) {
    const T id = Load<T>(data, i);
    if (!is_id(id)) {
      return absl::FailedPreconditionError(
          absl::StrCat(PlaceOf(first + i, row_length), " is ", id, ", not an id of 0 to ", kLargestId));
    }
  }
}

// Refuses files of known other formats.
absl::Status CheckFlat(absl::string_view text) {
  for (const auto& format : kOtherFormats) {
    if (absl::StartsWith(text, format.start)) {
      return absl::FailedPreconditionError(absl::StrCat("is ", format.what));
    }
  }
  return absl::OkStatus();
}

// Returns whether the ids look like ids of twice the width: every second one is 0. With fewer ids that could be chance.
template <typename T>
bool LookWider(const uint8_t* data, int64_t count) {
  constexpr int64_t kLookedAt = 1024;
  if (count < kLookedAt) return false;
  bool all_zero = true;
  for (int64_t i = 0; i < kLookedAt; i += 2) {
    if (Load<T>(data, i + 1) != 0) return false;
    all_zero = all_zero && Load<T>(data, i) == 0;
  }
  return !all_zero;
}

// Returns how many bytes precede the ids of a flat file of `file_bytes` bytes: those of llm.c's header, or 0. An error
// says why a header does not fit.
absl::StatusOr<int64_t> FlatOffset(absl::Span<const uint8_t> start, int64_t file_bytes, TokenDtype declared) {
  if (file_bytes < kLlmcHeaderBytes) return 0;
  const auto field = [&](int64_t index) { return Load<int32_t>(start.data(), index); };
  for (const auto& format : kLlmcFormats) {
    if (field(0) != format.magic) continue;
    if (field(1) != format.version) {
      return absl::FailedPreconditionError(
          absl::StrCat("has llm.c's header of version ", field(1), "; only version ", format.version, " is read"));
    }
    const int64_t held = file_bytes - kLlmcHeaderBytes;
    const TokenType& type = TypeOf(format.dtype);
    if (declared != format.dtype || held != field(2) * type.bytes) {
      return absl::FailedPreconditionError(absl::StrCat("has llm.c's header, which says ", field(2), " tokens of ",
                                                        type.name, "; ", held, " bytes follow it, and ",
                                                        TypeOf(declared).name, " was declared"));
    }
    return kLlmcHeaderBytes;
  }
  return 0;
}

absl::string_view AsText(absl::Span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Refuses a file whose form and declared type do not go together, or which is of another format.
absl::Status CheckForm(absl::string_view source, absl::string_view path, absl::Span<const uint8_t> start,
                       const std::optional<TokenDtype>& declared) {
  if (IsNpy(AsText(start))) {
    if (!declared) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": the file has NumPy's header, which names its type; leave out ':", TokenDtypeName(*declared), "'"));
  }
  RETURN_IF_ERROR(CheckFlat(AsText(start)));
  if (absl::EndsWith(path, ".npy")) {
    return absl::FailedPreconditionError(
        "not a .npy file: its first bytes are not \\x93NUMPY. If it holds ids without a header, as dolma and OLMo "
        "write them under this name, rename it and give it as FILE.bin:TYPE, for example FILE.bin:uint16");
  }
  if (declared) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(source, ": expected FILE.npy, or FILE:TYPE with the type of its tokens, ", kAcceptedTypes));
}

}  // namespace

absl::string_view TokenDtypeName(TokenDtype dtype) { return TypeOf(dtype).name; }

absl::StatusOr<std::unique_ptr<const Dataset>> Dataset::Open(std::string name, absl::string_view source) {
  absl::string_view path = source;
  std::optional<TokenDtype> declared;
  if (const size_t colon = source.rfind(':'); colon != absl::string_view::npos) {
    declared = TypeNamed(source.substr(colon + 1));
    if (declared) path = source.substr(0, colon);
  }
  auto dataset = std::unique_ptr<Dataset>(new Dataset);
  dataset->name_ = std::move(name);
  ASSIGN_OR_RETURN(dataset->file_, OpenFile(std::string(path)));
  ASSIGN_OR_RETURN(dataset->facts_, dataset->file_->Facts());
  std::vector<uint8_t> start(std::min(dataset->facts_.bytes, kStartBytes));
  RETURN_IF_ERROR(dataset->file_->ReadAt(0, absl::MakeSpan(start)));
  absl::Status status = CheckForm(source, path, start, declared);
  if (status.ok()) {
    status = declared ? dataset->ReadFlatForm(*declared, start) : dataset->ReadNpyForm(start);
  }
  if (status.ok() && dataset->tokens_ == 0) status = absl::FailedPreconditionError("holds no tokens");
  if (status.ok()) status = dataset->ReadAllTokens();
  if (absl::IsFailedPrecondition(status)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", status.message()));
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(dataset->CheckUnchanged());
  return dataset;
}

absl::Status Dataset::ReadNpyForm(absl::Span<const uint8_t> start) {
  const auto wrong = [](const auto&... what) { return absl::FailedPreconditionError(absl::StrCat(what...)); };
  const int64_t file_bytes = facts_.bytes;
  ASSIGN_OR_RETURN(const NpyHeader header, ParseNpyHeader(start));
  const auto* type = std::find_if(std::begin(kTokenTypes), std::end(kTokenTypes),
                                  [&](const TokenType& t) { return t.npy_descr == header.descr; });
  if (type == std::end(kTokenTypes)) {
    return wrong("type ", Quoted(header.descr), " is not ", kAcceptedTypes, ", little-endian");
  }
  dtype_ = type->dtype;
  data_offset_ = header.data_offset;
  const std::vector<int64_t>& shape = header.shape;
  if (shape.size() != 1 && shape.size() != 2) {
    return wrong(shape.size(), " dimensions; expected 1 (a stream) or 2 (a sequence a row)");
  }
  if (header.fortran_order && shape.size() == 2) return wrong("in Fortran order; save it in C order");
  row_length_ = shape.size() == 2 ? shape[1] : 0;
  if (shape.size() == 2 && row_length_ == 0) return wrong("rows without columns");
  const CheckedInt64 tokens = CheckedInt64(shape[0]) * (shape.size() == 2 ? row_length_ : 1);
  const std::optional<int64_t> end = (tokens * type->bytes + data_offset_).value();
  if (!end.has_value()) return wrong("its shape says more tokens than any file holds");
  tokens_ = *tokens.value();
  if (*end != file_bytes) {
    return wrong("holds ", file_bytes - data_offset_, " bytes of tokens, but its shape says ", tokens_, " tokens of ",
                 type->bytes, " bytes");
  }
  return absl::OkStatus();
}

absl::Status Dataset::ReadFlatForm(TokenDtype dtype, absl::Span<const uint8_t> start) {
  dtype_ = dtype;
  ASSIGN_OR_RETURN(data_offset_, FlatOffset(start, facts_.bytes, dtype));
  const int64_t token_bytes = TypeOf(dtype).bytes;
  const int64_t bytes = facts_.bytes - data_offset_;
  if (bytes % token_bytes != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(bytes, " bytes are not a multiple of ", token_bytes, ", the size of ", TokenDtypeName(dtype)));
  }
  tokens_ = bytes / token_bytes;
  const absl::Span<const uint8_t> ids = start.subspan(static_cast<size_t>(data_offset_));
  const int64_t looked_at = std::min<int64_t>(tokens_, static_cast<int64_t>(ids.size()) / token_bytes);
  if (WithType(dtype, [&](auto type) { return LookWider<decltype(type)>(ids.data(), looked_at); })) {
    return absl::FailedPreconditionError(absl::StrCat("every second ", TokenDtypeName(dtype),
                                                      " is 0, as if the ids had ", 16 * token_bytes,
                                                      " bits; declare their type"));
  }
  return absl::OkStatus();
}

absl::Status Dataset::ReadAllTokens() {
  Xxh3 hash;
  hash.Update(absl::StrCat(TokenDtypeName(dtype_), " ", row_length_));
  const int64_t token_bytes = TypeOf(dtype_).bytes;
  std::vector<uint8_t> piece(std::min(tokens_, kPieceTokens) * token_bytes);
  for (int64_t first = 0; first < tokens_; first += kPieceTokens) {
    const int64_t count = std::min(tokens_ - first, kPieceTokens);
    const absl::Span<uint8_t> bytes = absl::MakeSpan(piece).first(count * token_bytes);
    RETURN_IF_ERROR(file_->ReadAt(data_offset_ + first * token_bytes, bytes));
    ASSIGN_OR_RETURN(const uint32_t largest, WithType(dtype_, [&](auto type) {
                       return LargestId<decltype(type)>(bytes.data(), count, first, row_length_);
                     }));
    largest_token_id_ = std::max(largest_token_id_, largest);
    hash.Update(bytes);
  }
  fingerprint_ = absl::StrCat(absl::Hex(hash.hash64(), absl::kZeroPad16));
  return absl::OkStatus();
}

absl::Status Dataset::CheckUnchanged() const {
  ASSIGN_OR_RETURN(const FileFacts now, file_->Facts());
  if (now == facts_) return absl::OkStatus();
  const auto describe = [](const FileFacts& facts) {
    return absl::StrCat(facts.bytes, " bytes of ", absl::FormatTime(facts.modified, absl::UTCTimeZone()));
  };
  return absl::DataLossError(absl::StrCat("dataset ", Quoted(name_), ": ", file_->path(),
                                          " was changed while it was held: it has ", describe(now), " and had ",
                                          describe(facts_), "; restart to read what it holds now"));
}

absl::StatusOr<Dataset::Cut> Dataset::CutInto(int64_t sequence_length) const {
  if (row_length_ > 0) {
    if (sequence_length != 0 && sequence_length != row_length_) {
      return InvalidField("sequence_length", absl::StrCat(sequence_length, " was asked for, but the rows of dataset '",
                                                          name_, "' have ", row_length_, " tokens; give that or 0"));
    }
    return Cut{row_length_, tokens_ / row_length_};
  }
  if (sequence_length < 1 || sequence_length > tokens_) {
    return InvalidField("sequence_length", absl::StrCat(sequence_length, " was asked for, but dataset '", name_,
                                                        "' is a stream of ", tokens_, " tokens; give 1 to that"));
  }
  return Cut{sequence_length, tokens_ / sequence_length};
}

absl::Status Dataset::ReadSequence(int64_t index, int64_t vocabulary_size, absl::Span<uint32_t> ids) const {
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t first = index * count;
  const int64_t token_bytes = TypeOf(dtype_).bytes;
  std::vector<uint8_t> bytes(count * token_bytes);
  absl::Status read = file_->ReadAt(data_offset_ + first * token_bytes, absl::MakeSpan(bytes));
  // This is checked after the read, so that no change before it goes unnoticed, and before the ids, because its error
  // says the most.
  RETURN_IF_ERROR(CheckUnchanged());
  RETURN_IF_ERROR(read);
  int64_t unknown = -1;
  int64_t unknown_id = 0;
  WithType(dtype_, [&](auto type) {
    for (int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<int64_t>(Load<decltype(type)>(bytes.data(), i));
      if ((id < 0 || id >= vocabulary_size) && unknown < 0) {
        unknown = i;
        unknown_id = id;
      }
      ids[i] = static_cast<uint32_t>(id);
    }
  });
  if (unknown < 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("dataset ", Quoted(name_), ": ", file_->path(),
                                          " was changed while it was held: token ", first + unknown, " is ", unknown_id,
                                          " now, not an id below ", vocabulary_size, "; restart to read it anew"));
}

}  // namespace hookline
