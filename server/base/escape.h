// Escapes bytes from files and peers, so that they can be shown safely.
//
//   spdlog::warn("recording {}", Escaped(name));
#ifndef HOOKLINE_SERVER_BASE_ESCAPE_H_
#define HOOKLINE_SERVER_BASE_ESCAPE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace hookline {

// Returns `text` with everything replaced by C escapes that could forge a line, move a terminal's cursor or reverse the
// reading direction: control characters (C0, DEL, C1), the line and paragraph separators, the marks, embeddings,
// overrides and isolates of bidirectional text, the byte order mark, and bytes that are not UTF-8. `\n`, `\t` and `\r`
// are written so, all else byte by byte as `\x1b`. Printable text, backslashes included, stays as it is, so that
// escaping twice changes nothing. The result is valid UTF-8.
std::string Escaped(absl::string_view text);

// Returns the same in single quotes, cut to `max_bytes` of `text` (with "..." after the cut). Messages quote names this
// way.
std::string Quoted(absl::string_view text, size_t max_bytes = 120);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_ESCAPE_H_
