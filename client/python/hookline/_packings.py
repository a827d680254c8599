"""The packings of `hookline.pack`, which turn documents into rows of tokens. Each gives the same rows as its original.

A packing takes the token ids of documents in order and yields rows. `state` and `restore` preserve it over a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

Ids = "np.ndarray[Any, Any]"


class Packing(Protocol):
    """Turns documents into rows of `row_length` tokens, or into a stream of tokens if it is 0."""

    row_length: int

    def add(self, ids: Any) -> Iterator[Any]:
        """Yields the rows that a document completes, or a stream's next tokens."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Plain:
    """Writes all tokens one after another, with a separator after each document if one is given."""

    row_length = 0

    def __init__(self, separator: int | None) -> None:
        self._end = np.array([] if separator is None else [separator], np.uint32)

    def add(self, ids: Any) -> Iterator[Any]:
        yield np.concatenate([ids, self._end]) if len(self._end) else ids

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class SaeLens:
    """Packs as SAELens's `concat_and_batch_sequences`: rows of `context_size` tokens, with or without documents that
    continue across rows."""

    def __init__(
        self,
        context_size: int,
        begin_row: int | None,
        begin_document: int | None,
        separator: int | None,
        continue_documents: bool,
    ) -> None:
        self.row_length = context_size
        self._begin_row = begin_row
        self._begin_document = begin_document
        self._separator = separator
        self._continue = continue_documents
        self._row: list[Any] = []  # parts of the row that is being filled
        self._filled = 0

    def add(self, ids: Any) -> Iterator[Any]:
        if len(ids) == 0:
            return
        if not self._continue:
            yield from self._whole(ids)
            return
        offset = 0
        starts = True
        while offset < len(ids):
            offset, starts = self._fill(ids, offset, starts)
            if self._filled == self.row_length:
                yield np.concatenate(self._row)
                self._row, self._filled = [], 0

    def _whole(self, ids: Any) -> Iterator[Any]:
        begin = self._begin_row if self._begin_document is None else self._begin_document
        if begin is not None and len(ids) >= self.row_length - 1 and ids[0] != begin:
            ids = np.concatenate([np.array([begin], np.uint32), ids[: self.row_length - 1]])
        if len(ids) >= self.row_length:
            yield ids[: self.row_length]

    def _fill(self, ids: Any, offset: int, starts: bool) -> tuple[int, bool]:
        """Adds the document from `offset` on to the row. Returns the next offset, and whether the document's begin
        token is still to come because the row was full before it."""
        first = int(ids[offset])
        prefix: list[int] = []
        pending = False
        if starts and self._begin_document is not None and first != self._begin_document:
            prefix, first, pending = [self._begin_document], self._begin_document, True
        before = self._separator if self._row else self._begin_row
        if before is not None and first != before:
            prefix.insert(0, before)
        room = self.row_length - self._filled
        part = ids[offset : offset + max(room - len(prefix), 0)]
        self._row += [np.array(prefix[:room], np.uint32), part]
        self._filled += min(len(prefix), room) + len(part)
        return offset + max(room - len(prefix), 0), pending and len(prefix) > room

    def state(self) -> dict[str, Any]:
        return {"row": np.concatenate(self._row).tolist() if self._row else []}

    def restore(self, state: dict[str, Any]) -> None:
        self._row = [np.array(state["row"], np.uint32)] if state["row"] else []
        self._filled = len(state["row"])


class _Framed:
    """Rows of `context_size` tokens with special tokens around each. A document's rows depend on no other document."""

    def __init__(self, context_size: int, before: Sequence[int], after: Sequence[int]) -> None:
        self.row_length = context_size
        self._before = np.array(before, np.uint32)
        self._after = np.array(after, np.uint32)
        self._room = context_size - len(before) - len(after)
        if self._room < 1:
            raise ValueError(f"context_size: {context_size} tokens leave no room beside the special tokens")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Sparsify(_Framed):
    """Packs as sparsify's `chunk_and_tokenize`: documents arrive `DOCUMENTS` at a time as one text, joined by EOS. It
    is cut into rows with the special tokens around each; the last row of each such text is left out."""

    DOCUMENTS = 2048

    def add(self, ids: Any) -> Iterator[Any]:
        for begin in range(0, len(ids) - self._room, self._room):
            yield np.concatenate([self._before, ids[begin : begin + self._room], self._after])


class PadOrTruncate(_Framed):
    """Packs as dictionary_learning: one row per document, cut at `context_size` or padded with `pad` on the right.
    `filled` is how many tokens of the latest row are not padding."""

    filled = 0

    def __init__(self, context_size: int, pad: int, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__(context_size, before, after)
        self._pad = pad

    def add(self, ids: Any) -> Iterator[Any]:
        row = np.full(self.row_length, self._pad, np.uint32)
        tokens = np.concatenate([self._before, ids[: self._room], self._after])
        row[: len(tokens)] = tokens
        self.filled = len(tokens)
        yield row
