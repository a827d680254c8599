#include "server/dataset/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/checked_math.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/dataset/npy_header.h"

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
    {TokenDtype::kInt64, "int64", "<i8", 8},
};
constexpr absl::string_view kAcceptedTypes = "uint8, uint16, int32, uint32 or int64";

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

// Calls `body` with a value of the C++ type that stands for `dtype`.
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
  }
  return body(uint8_t{});
}

template <typename T>
T Load(const uint8_t* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Tokens that are read together: a piece stays in the processor's cache between being read, looked at and hashed.
constexpr int64_t kPieceTokens = int64_t{1} << 16;
constexpr int64_t kLargestId = std::numeric_limits<uint32_t>::max();

// The largest of `count` ids, or an error naming the first that is no id. `first` is the index of the first one.
template <typename T>
absl::StatusOr<uint32_t> LargestId(const uint8_t* data, int64_t count, int64_t first) {
  int64_t smallest = 0;
  int64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = Load<T>(data, i);
    smallest = std::min(smallest, id);
    largest = std::max(largest, id);
  }
  if (smallest >= 0 && largest <= kLargestId) return static_cast<uint32_t>(largest);
  for (int64_t i = 0;; ++i) {
    const int64_t id = Load<T>(data, i);
    if (id < 0 || id > kLargestId) {
      return absl::FailedPreconditionError(
          absl::StrCat("token ", first + i, " is ", id, ", not an id of 0 to ", kLargestId));
    }
  }
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
  const bool npy = absl::EndsWith(path, ".npy");
  if (npy && declared) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": a .npy file names its own type; leave out ':", TokenDtypeName(*declared), "'"));
  }
  if (!npy && !declared) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": expected FILE.npy, or FILE:TYPE with the type of its tokens, ", kAcceptedTypes));
  }
  ASSIGN_OR_RETURN(dataset->file_, OpenFile(std::string(path)));
  ASSIGN_OR_RETURN(dataset->facts_, dataset->file_->Facts());
  absl::Status status =
      npy ? dataset->ReadNpyForm(dataset->facts_.bytes) : dataset->ReadFlatForm(*declared, dataset->facts_.bytes);
  if (status.ok() && dataset->tokens_ == 0) status = absl::FailedPreconditionError("holds no tokens");
  if (status.ok()) status = dataset->ReadAllTokens();
  if (absl::IsFailedPrecondition(status)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", status.message()));
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(dataset->CheckUnchanged());
  return dataset;
}

absl::Status Dataset::ReadNpyForm(int64_t file_bytes) {
  const auto wrong = [](auto... what) { return absl::FailedPreconditionError(absl::StrCat(what...)); };
  std::vector<uint8_t> start(std::min(file_bytes, kMaxNpyHeaderEnd));
  RETURN_IF_ERROR(file_->ReadAt(0, absl::MakeSpan(start)));
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
    return wrong("holds ", file_bytes - data_offset_, " bytes of tokens, its shape says ", tokens_, " of ",
                 type->bytes);
  }
  return absl::OkStatus();
}

absl::Status Dataset::ReadFlatForm(TokenDtype dtype, int64_t file_bytes) {
  dtype_ = dtype;
  const int64_t token_bytes = TypeOf(dtype).bytes;
  if (file_bytes % token_bytes != 0) {
    return absl::FailedPreconditionError(absl::StrCat(file_bytes, " bytes are not a multiple of ", token_bytes,
                                                      ", the size of ", TokenDtypeName(dtype)));
  }
  tokens_ = file_bytes / token_bytes;
  return absl::OkStatus();
}

absl::Status Dataset::ReadAllTokens() {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), &XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  const std::string form = absl::StrCat(TokenDtypeName(dtype_), " ", row_length_);
  XXH3_64bits_update(hash.get(), form.data(), form.size());
  const int64_t token_bytes = TypeOf(dtype_).bytes;
  std::vector<uint8_t> piece(std::min(tokens_, kPieceTokens) * token_bytes);
  for (int64_t first = 0; first < tokens_; first += kPieceTokens) {
    const int64_t count = std::min(tokens_ - first, kPieceTokens);
    const absl::Span<uint8_t> bytes = absl::MakeSpan(piece).first(count * token_bytes);
    RETURN_IF_ERROR(file_->ReadAt(data_offset_ + first * token_bytes, bytes));
    ASSIGN_OR_RETURN(const uint32_t largest, WithType(dtype_, [&](auto type) {
                       return LargestId<decltype(type)>(bytes.data(), count, first);
                     }));
    largest_token_id_ = std::max(largest_token_id_, largest);
    XXH3_64bits_update(hash.get(), bytes.data(), bytes.size());
  }
  fingerprint_ = absl::StrCat(absl::Hex(XXH3_64bits_digest(hash.get()), absl::kZeroPad16));
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
      return InvalidField("sequence_length",
                          absl::StrCat(sequence_length, " asked of dataset '", name_, "', whose rows have ",
                                       row_length_, " tokens; give that or 0"));
    }
    return Cut{row_length_, tokens_ / row_length_};
  }
  if (sequence_length < 1 || sequence_length > tokens_) {
    return InvalidField("sequence_length", absl::StrCat(sequence_length, " asked of dataset '", name_,
                                                        "', a stream; give 1 to its ", tokens_, " tokens"));
  }
  return Cut{sequence_length, tokens_ / sequence_length};
}

absl::Status Dataset::ReadSequence(int64_t index, int64_t vocabulary_size, absl::Span<uint32_t> ids) const {
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t first = index * count;
  const int64_t token_bytes = TypeOf(dtype_).bytes;
  std::vector<uint8_t> bytes(count * token_bytes);
  absl::Status read = file_->ReadAt(data_offset_ + first * token_bytes, absl::MakeSpan(bytes));
  // After the read, so that nothing which was written before it goes unnoticed; and first, because it says most.
  RETURN_IF_ERROR(CheckUnchanged());
  RETURN_IF_ERROR(read);
  int64_t unknown = -1;
  int64_t unknown_id = 0;
  WithType(dtype_, [&](auto type) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = Load<decltype(type)>(bytes.data(), i);
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
