// Escapes bytes from files and peers, so that they can be shown safely.
//
//   spdlog::warn("recording {}", Escaped(name));
#ifndef HOOKLINE_SERVER_BASE_ESCAPE_H_
#define HOOKLINE_SERVER_BASE_ESCAPE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace hookline {

// Returns `text` with C escapes in place of everything that could forge a line, move a terminal's cursor or reverse the
// reading direction: control characters (C0, DEL, C1), the line and paragraph separators, the marks, embeddings,
// overrides and isolates of bidirectional text, the byte order mark, and bytes that are not UTF-8. The escapes are
// `\n`, `\t` and `\r`, and for all else one such as `\x1b` for each byte. Printable text, backslashes included, stays
// as it is, so that escaping twice changes nothing. The result is valid UTF-8.
std::string Escaped(absl::string_view text);

// Returns at most `max_bytes` of `text`, escaped as above and in single quotes; "..." marks a cut. Messages quote names
// this way.
std::string Quoted(absl::string_view text, size_t max_bytes = 120);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_ESCAPE_H_
