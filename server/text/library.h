// Converts values between the Rust library and C++, for server/text only.
#ifndef HOOKLINE_SERVER_TEXT_LIBRARY_H_
#define HOOKLINE_SERVER_TEXT_LIBRARY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/escape.h"
#include "server/text/tokenizer.h"
#include "server/text/tokenizers.h"

namespace hookline {

inline hookline_bytes AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Copies the text and frees the buffer.
inline std::string TakeText(hookline_buffer buffer) {
  std::string text(reinterpret_cast<const char*>(buffer.data), buffer.size);
  hookline_buffer_free(buffer);
  return text;
}

// Does the same for an error. The error can quote a file or a text, so it is cut and unprintable characters
// are escaped.
inline std::string TakeError(hookline_buffer buffer) {
  constexpr size_t kMaxErrorBytes = 400;
  std::string text = TakeText(buffer);
  if (text.size() > kMaxErrorBytes) text = text.substr(0, kMaxErrorBytes) + "...";
  return Escaped(text);
}

// Encodes with the library; INVALID_ARGUMENT carries the library's message.
inline absl::StatusOr<TokenizedText> EncodeWith(const hookline_tokenizer* library, absl::string_view text,
                                                bool add_special_tokens) {
  hookline_encoding encoding{};
  hookline_buffer error{};
  if (!hookline_tokenizer_encode(library, AsBytes(text), add_special_tokens, &encoding, &error)) {
    return absl::InvalidArgumentError(TakeError(error));
  }
  TokenizedText tokens;
  tokens.ids.assign(encoding.ids, encoding.ids + encoding.size);
  tokens.begins.assign(encoding.begins, encoding.begins + encoding.size);
  tokens.ends.assign(encoding.ends, encoding.ends + encoding.size);
  hookline_encoding_free(encoding);
  return tokens;
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_TEXT_LIBRARY_H_
