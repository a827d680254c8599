#include "server/formats/npy.h"

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/escape.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"

namespace hookline {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY", 6);
// This is NumPy's own default limit.
constexpr uint32_t kMaxHeaderBytes = 10000;
static_assert(kMaxNpyHeaderEnd == 12 + kMaxHeaderBytes);
constexpr size_t kMaxDimensions = 32;  // NumPy's own limit

absl::Status Malformed(absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat("malformed .npy header: ", what));
}

// Parses the header, a Python dict literal whose keys are strings and whose values are a string, a boolean and a tuple
// of integers.
class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : text_(text) {}

  absl::StatusOr<NpyHeader> Parse() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    if (!Consume('{')) return Malformed("no dictionary");
    while (!Consume('}')) {
      ASSIGN_OR_RETURN(std::string key, String());
      if (!Consume(':')) return Malformed(absl::StrCat("no value for ", Quoted(key)));
      if (key == "descr" && !has_descr) {
        ASSIGN_OR_RETURN(header.descr, String());
        has_descr = true;
      } else if (key == "fortran_order" && !has_order) {
        ASSIGN_OR_RETURN(header.fortran_order, Boolean());
        has_order = true;
      } else if (key == "shape" && !has_shape) {
        ASSIGN_OR_RETURN(header.shape, Tuple());
        has_shape = true;
      } else {
        return Malformed(absl::StrCat("unexpected or repeated key ", Quoted(key)));
      }
      if (!Consume(',') && !Peek('}')) return Malformed("neither ',' nor '}' after a value");
    }
    if (!has_descr || !has_order || !has_shape) return Malformed("descr, fortran_order or shape is missing");
    return header;
  }

 private:
  void SkipSpace() {
    while (!text_.empty() && absl::ascii_isspace(static_cast<unsigned char>(text_[0]))) text_.remove_prefix(1);
  }
  bool Peek(char c) {
    SkipSpace();
    return !text_.empty() && text_[0] == c;
  }
  bool Consume(char c) {
    if (!Peek(c)) return false;
    text_.remove_prefix(1);
    return true;
  }
  absl::StatusOr<std::string> String() {
    SkipSpace();
    const char quote = text_.empty() ? '\0' : text_[0];
    if (quote != '\'' && quote != '"') return Malformed("a string was expected (structured types are not supported)");
    const size_t end = text_.find(quote, 1);
    if (end == absl::string_view::npos) return Malformed("unterminated string");
    std::string value(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return value;
  }
  absl::StatusOr<bool> Boolean() {
    SkipSpace();
    for (bool value : {true, false}) {
      const absl::string_view word = value ? "True" : "False";
      if (absl::StartsWith(text_, word)) {
        text_.remove_prefix(word.size());
        return value;
      }
    }
    return Malformed("True or False was expected");
  }
  absl::StatusOr<std::vector<int64_t>> Tuple() {
    std::vector<int64_t> values;
    if (!Consume('(')) return Malformed("a tuple was expected");
    while (!Consume(')')) {
      SkipSpace();
      size_t digits = 0;
      while (digits < text_.size() && absl::ascii_isdigit(static_cast<unsigned char>(text_[digits]))) ++digits;
      int64_t value = 0;
      if (digits == 0 || !absl::SimpleAtoi(text_.substr(0, digits), &value)) return Malformed("a size was expected");
      text_.remove_prefix(digits);
      if (values.size() == kMaxDimensions) return Malformed("too many dimensions");
      values.push_back(value);
      if (!Consume(',') && !Peek(')')) return Malformed("neither ',' nor ')' after a size");
    }
    return values;
  }

  absl::string_view text_;
};

}  // namespace

bool IsNpy(absl::string_view file) { return absl::StartsWith(file, kMagic); }

absl::StatusOr<NpyHeader> ParseNpyHeader(absl::Span<const uint8_t> file) {
  const absl::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (!IsNpy(text) || text.size() < 10) {
    return absl::FailedPreconditionError("not a .npy file: its first bytes are not \\x93NUMPY");
  }
  const int major = file[6];
  if (major < 1 || major > 3) return Malformed(absl::StrCat("version ", major, " is not 1, 2 or 3"));
  const size_t length_bytes = major == 1 ? 2 : 4;
  const size_t start = 8 + length_bytes;
  if (text.size() < start) return Malformed("the file ends inside it");
  const uint64_t length = ReadLittleEndian(file.subspan(8, length_bytes));
  if (length > kMaxHeaderBytes) return Malformed(absl::StrCat(length, " bytes, more than ", kMaxHeaderBytes));
  if (text.size() - start < length) return Malformed("the file ends inside it");
  ASSIGN_OR_RETURN(NpyHeader header, HeaderParser(text.substr(start, length)).Parse());
  header.data_offset = static_cast<int64_t>(start + length);
  return header;
}

std::string NpyMatrixHeader(absl::string_view descr, int64_t rows, int64_t width) {
  constexpr auto kBytes = static_cast<size_t>(kNpyMatrixHeaderBytes);
  std::string out = absl::StrCat(kMagic, absl::string_view("\x01\x00", 2));
  AppendLittleEndian(kBytes - 10, 2, &out);
  absl::StrAppend(&out, "{'descr': '", descr, "', 'fortran_order': False, 'shape': (", rows, ", ", width, "), }");
  out.resize(kBytes - 1, ' ');
  return out + "\n";
}

}  // namespace hookline
