#include "server/dataset/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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
    {TokenDtype::kInt64, "int64", "<i8", 8}, {TokenDtype::kUint64, "uint64", "<u8", 8},
};
constexpr absl::string_view kAcceptedTypes = "uint8, uint16, int32, uint32, int64 or uint64";

// What files of other formats begin with, and what they are: as token ids they would be read as noise.
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

// Tokens that are looked at together: each piece is in the cache when it is hashed, and files may exceed the memory.
constexpr int64_t kPieceTokens = int64_t{1} << 16;

// Where token `index` stands: in a row where the file has rows.
std::string PlaceOf(int64_t index, int64_t row_length) {
  if (row_length == 0) return absl::StrCat("token ", index);
  return absl::StrCat("row ", index / row_length, ", column ", index % row_length, ": token ", index);
}

// The largest id, or an error naming the first that is no id. Adds all bytes to `hash`.
template <typename T>
absl::StatusOr<uint32_t> LargestId(const uint8_t* data, int64_t count, int64_t row_length, XXH3_state_t* hash) {
  constexpr uint32_t kLargest = std::numeric_limits<uint32_t>::max();
  T smallest = 0;
  T largest = 0;
  for (int64_t begin = 0; begin < count; begin += kPieceTokens) {
    const int64_t end = std::min(count, begin + kPieceTokens);
    for (int64_t i = begin; i < end; ++i) {
      const T id = Load<T>(data, i);
      smallest = std::min(smallest, id);
      largest = std::max(largest, id);
    }
    XXH3_64bits_update(hash, data + begin * static_cast<int64_t>(sizeof(T)),
                       static_cast<size_t>(end - begin) * sizeof(T));
  }
  // A negative one becomes a large unsigned one.
  const auto is_id = [](T id) { return static_cast<uint64_t>(id) <= kLargest; };
  if (is_id(smallest) && is_id(largest)) return static_cast<uint32_t>(largest);
  for (int64_t i = 0;; ++i) {
    const T id = Load<T>(data, i);
    if (!is_id(id)) {
      return absl::FailedPreconditionError(
          absl::StrCat(PlaceOf(i, row_length), " is ", id, ", not an id of 0 to ", kLargest));
    }
  }
}

// Refuses what is known to be something else than ids alone.
absl::Status CheckFlat(absl::string_view text) {
  for (const auto& format : kOtherFormats) {
    if (absl::StartsWith(text, format.start)) {
      return absl::FailedPreconditionError(absl::StrCat("is ", format.what));
    }
  }
  return absl::OkStatus();
}

// Whether the ids look like ones of twice the width: every second one is 0. Of fewer ids that may be chance.
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

// Bytes before the ids of a flat file: those of llm.c's header, or none. An error names a header that does not fit.
absl::StatusOr<int64_t> FlatOffset(absl::Span<const uint8_t> bytes, TokenDtype declared) {
  if (static_cast<int64_t>(bytes.size()) < kLlmcHeaderBytes) return 0;
  const auto field = [&](int64_t index) { return Load<int32_t>(bytes.data(), index); };
  for (const auto& format : kLlmcFormats) {
    if (field(0) != format.magic) continue;
    if (field(1) != format.version) {
      return absl::FailedPreconditionError(
          absl::StrCat("has llm.c's header of version ", field(1), "; version ", format.version, " is read"));
    }
    const int64_t held = static_cast<int64_t>(bytes.size()) - kLlmcHeaderBytes;
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
  ASSIGN_OR_RETURN(dataset->file_, MappedFile::Open(std::string(path)));
  const absl::Span<const uint8_t> bytes = dataset->file_->bytes();
  const absl::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  auto wrong = [&](absl::string_view what) { return absl::FailedPreconditionError(absl::StrCat(path, ": ", what)); };
  const bool npy = IsNpy(text);
  if (npy && declared) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": the file has NumPy's header, which names its type; leave out ':", TokenDtypeName(*declared), "'"));
  }
  if (!npy) {
    if (const absl::Status other = CheckFlat(text); !other.ok()) return wrong(other.message());
    if (absl::EndsWith(path, ".npy")) {
      return wrong(
          "not a .npy file: its first bytes are not \\x93NUMPY. Ids without a header, as dolma and OLMo write them "
          "under "
          "this name, are read once renamed, as FILE.bin:TYPE, for example FILE.bin:uint16");
    }
    if (!declared) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": expected FILE.npy, or FILE:TYPE with the type of its tokens, ", kAcceptedTypes));
    }
  }

  int64_t data_offset = 0;
  if (npy) {
    auto header = ParseNpyHeader(bytes);
    if (!header.ok()) return wrong(header.status().message());
    const auto* type = std::find_if(std::begin(kTokenTypes), std::end(kTokenTypes),
                                    [&](const TokenType& t) { return t.npy_descr == header->descr; });
    if (type == std::end(kTokenTypes)) {
      return wrong(absl::StrCat("type '", header->descr, "' is not ", kAcceptedTypes, ", little-endian"));
    }
    dataset->dtype_ = type->dtype;
    data_offset = header->data_offset;
    const std::vector<int64_t>& shape = header->shape;
    if (shape.size() != 1 && shape.size() != 2) {
      return wrong(absl::StrCat(shape.size(), " dimensions; expected 1 (a stream) or 2 (a sequence a row)"));
    }
    if (header->fortran_order && shape.size() == 2) return wrong("in Fortran order; save it in C order");
    const int64_t held = (static_cast<int64_t>(bytes.size()) - data_offset) / type->bytes;
    dataset->tokens_ = shape[0];
    if (shape.size() == 2) {
      dataset->row_length_ = shape[1];
      if (shape[1] == 0 || shape[0] > held / shape[1]) return wrong("shorter than its shape says, or without columns");
      dataset->tokens_ = shape[0] * shape[1];
    }
    if (dataset->tokens_ != held || (static_cast<int64_t>(bytes.size()) - data_offset) % type->bytes != 0) {
      return wrong(absl::StrCat("holds ", bytes.size() - data_offset, " bytes of tokens, its shape says ",
                                dataset->tokens_, " of ", type->bytes));
    }
  } else {
    const absl::StatusOr<int64_t> offset = FlatOffset(bytes, *declared);
    if (!offset.ok()) return wrong(offset.status().message());
    data_offset = *offset;
    dataset->dtype_ = *declared;
    const int64_t token_bytes = TypeOf(*declared).bytes;
    if (static_cast<int64_t>(bytes.size()) % token_bytes != 0) {
      return wrong(absl::StrCat(bytes.size(), " bytes are not a multiple of ", token_bytes, ", the size of ",
                                TokenDtypeName(*declared)));
    }
    dataset->tokens_ = (static_cast<int64_t>(bytes.size()) - data_offset) / token_bytes;
  }
  if (dataset->tokens_ == 0) return wrong("holds no tokens");
  dataset->data_ = bytes.data() + data_offset;
  if (declared && WithType(dataset->dtype_,
                           [&](auto type) { return LookWider<decltype(type)>(dataset->data_, dataset->tokens_); })) {
    return wrong(absl::StrCat("every second ", TokenDtypeName(dataset->dtype_), " is 0, as where the ids are of ",
                              16 * TypeOf(dataset->dtype_).bytes, " bits; declare their type"));
  }

  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), &XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  const std::string form = absl::StrCat(TokenDtypeName(dataset->dtype_), " ", dataset->row_length_);
  XXH3_64bits_update(hash.get(), form.data(), form.size());
  auto largest = WithType(dataset->dtype_, [&](auto type) {
    return LargestId<decltype(type)>(dataset->data_, dataset->tokens_, dataset->row_length_, hash.get());
  });
  if (!largest.ok()) return wrong(largest.status().message());
  dataset->largest_token_id_ = *largest;
  dataset->fingerprint_ = absl::StrCat(absl::Hex(XXH3_64bits_digest(hash.get()), absl::kZeroPad16));
  return dataset;
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

void Dataset::ReadSequence(int64_t index, absl::Span<uint32_t> ids) const {
  const int64_t first = index * static_cast<int64_t>(ids.size());
  WithType(dtype_, [&](auto type) {
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(Load<decltype(type)>(data_, first + i));
  });
}

}  // namespace hookline
