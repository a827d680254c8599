"""Turns documents into rows of tokens by the packings of `hookline.pack`, each equal to its original.

A packing is fed the token ids of documents in order and gives rows. `state` and its `restore` carry it over a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

Ids = "np.ndarray[Any, Any]"


class Packing(Protocol):
    """`row_length`: 0 for a stream of tokens."""

    row_length: int

    def add(self, ids: Any) -> Iterator[Any]:
        """The rows that a document fills; of a stream, its next tokens."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Plain:
    """All tokens one after another, with a separator after each document where one is given."""

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
    """SAELens's `concat_and_batch_sequences`: rows of `context_size` tokens, documents continued across rows or not."""

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
        """Adds to the row from `offset` on. Returns the next offset, and whether the document's first token is still to
        come because the row ended before it."""
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
    """Rows of `context_size` tokens with special tokens around each. What one document brings depends on no other."""

    def __init__(self, context_size: int, before: Sequence[int], after: Sequence[int]) -> None:
        self.row_length = context_size
        self._before = np.array(before, np.uint32)
        self._after = np.array(after, np.uint32)
        self._room = context_size - len(before) - len(after)
        if self._room < 1:
            raise ValueError(f"context_size: {context_size} tokens have no room beside the special ones")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Sparsify(_Framed):
    """sparsify's `chunk_and_tokenize`: its documents arrive joined by EOS, `DOCUMENTS` at a time, as one text, which is
    cut into rows with the special tokens around each; the last row of each such batch is left out."""

    DOCUMENTS = 2048

    def add(self, ids: Any) -> Iterator[Any]:
        for begin in range(0, len(ids) - self._room, self._room):
            yield np.concatenate([self._before, ids[begin : begin + self._room], self._after])


class PadOrTruncate(_Framed):
    """dictionary_learning's: a row a document, cut at `context_size` or filled up with `pad` on the right. `filled`
    says how many tokens of the last row are the document's."""

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
