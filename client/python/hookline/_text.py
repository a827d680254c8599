"""Makes text from a server safe to display."""

from __future__ import annotations

import re

# Matches control characters, line and paragraph separators, the marks and overrides of bidirectional text, the byte
# order mark, and surrogates, which stand for bytes that were not UTF-8.
_HIDDEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escaped(text: str) -> str:
    """Returns `text` with all characters escaped that could forge a line, move a terminal's cursor or change
    the reading direction (`\\x1b`, byte by byte in UTF-8). Printable characters stay, so that escaping twice
    changes nothing."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that surrogateescape decoded
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
