"""Reads the sources of token ids that the client sends to the server.

`TokenFeed` keeps the tokens that it sent until rows of later sequences have arrived, so that a capture survives a
reconnect with any source: a list, a loader that shuffles, or a generator that can only be read once.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import numpy as np

from hookline._token_ids import (
    Ids,
    TokenBatch,
    batch_sequences,
    holds_sequences,
    is_dict,
    is_one_batch,
    is_table,
    list_sequences,
    tell_without_bos,
)
from hookline.errors import HooklineError
from hookline.types import Dataset, Feed, Recording, Selection, Text

# The most ids in one message to the server: at 5 bytes each, this is far below gRPC's default limit of 4 MiB.
MESSAGE_TOKENS = 1 << 16
# The most ids kept for a reconnect. It is only reached if the server runs that many without sending a single row.
KEPT_TOKENS = 16 << 20
# The number of sequences whose first ids are compared: few to read, but too many to begin alike by chance.
_FIRST_SEQUENCES = 64


def source_batches(source: Any) -> Iterator[TokenBatch]:
    """Returns the batches of a client's source: token ids as `batch_sequences` takes them, a list of 2-d batches, or an
    iterable of batches. Errors name the part of the source that they are about."""
    if isinstance(source, (str, bytes)):
        raise TypeError(f"source: {type(source).__name__} holds no token ids; give text=... for texts")
    if is_table(source) and str(getattr(source, "layout", "torch.strided")) == "torch.strided":
        return _row_blocks(source)
    is_list = isinstance(source, (list, tuple, range)) and not is_dict(source)
    if is_list and source and (isinstance(source[0], TokenBatch) or holds_sequences(source[0])):
        return iter([_whole_source(source)]) if is_one_batch(source) else _each_batch(source)
    if is_list or is_dict(source) or hasattr(source, "__array__") or hasattr(source, "detach"):
        return iter([_whole_source(source)])
    if hasattr(source, "__iter__"):
        return _each_batch(source)
    raise TypeError(
        f"source: {type(source).__name__} is not a tensor, array or list of token ids, an iterable of batches, "
        "hookline.Dataset, hookline.Feed or hookline.Recording"
    )


def _whole_source(source: Any) -> TokenBatch:
    """Reads a source that is one batch. A list of tensors is a list of sequences, since it does not come from
    a loader."""
    is_list = isinstance(source, list) and len(source) > 0 and getattr(source[0], "ndim", 0) == 1
    sequences = list_sequences(source, "source") if is_list else batch_sequences(source, "source")
    return TokenBatch(sequences, lambda index: f"row {sequences.row(index)} of the source")


def _each_batch(source: Iterable[Any]) -> Iterator[TokenBatch]:
    for number, batch in enumerate(source):
        yield batch if isinstance(batch, TokenBatch) else _numbered_batch(batch, number)


def _numbered_batch(batch: Any, number: int) -> TokenBatch:
    sequences = batch_sequences(batch, f"batch {number} of the source")
    return TokenBatch(sequences, lambda index: f"batch {number} of the source, row {sequences.row(index)}")


def _row_blocks(array: Any) -> Iterator[TokenBatch]:
    """Cuts a tensor or array of two dimensions into pieces of a message, so that one mapped from a file is read as it
    is sent."""
    step = max(1, MESSAGE_TOKENS // max(1, array.shape[1]))
    for first in range(0, len(array), step):
        rows = batch_sequences(array[first : first + step], f"source[{first}:]")
        yield TokenBatch(rows, lambda index, first=first: f"row {first + index} of the source")  # type: ignore[misc]


def is_server_source(source: Any) -> bool:
    """Returns whether the source is one whose sequences the server makes itself."""
    return isinstance(source, (Dataset, Feed, Recording, Text))


def can_be_read_again(source: Any) -> bool:
    """Returns whether a source can be read again from its start, which is true of all but iterators."""
    return is_server_source(source) or not isinstance(source, Iterator)


def messages(batches: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    """Cuts batches to the size of one message. Batches without sequences are left out."""
    for batch in batches:
        first = tokens = 0
        for index, ids in enumerate(batch.sequences):
            if index > first and tokens + len(ids) > MESSAGE_TOKENS:
                yield _part(batch, first, index)
                first, tokens = index, 0
            tokens += len(ids)
        if first < len(batch.sequences):
            yield _part(batch, first, len(batch.sequences))


def _part(batch: TokenBatch, first: int, end: int) -> TokenBatch:
    if first == 0 and end == len(batch.sequences):
        return batch
    return TokenBatch(batch.sequences[first:end], lambda index: batch.place(first + index))


# Matches a sequence in a server's error: servers name it by its index in the request, or among all streamed ones.
_SEQUENCE_PATH = re.compile(r"(?:\w+\.)*tokens\.sequences\[(\d+)\](?:\.ids)?(?:\[(\d+)\])?")


def name_place(error: HooklineError, place: Callable[[int], str | None]) -> HooklineError:
    """Replaces the sequence that a server's error names by its place in the client's source. `place` returns the place
    of a sequence index, None if it does not know it."""
    match = _SEQUENCE_PATH.search(error.field or error.message)
    where = place(int(match.group(1))) if match is not None else None
    if match is None or where is None:
        return error
    position = f", position {match.group(2)}" if match.group(2) is not None else ""
    what = _SEQUENCE_PATH.sub("", error.message, count=1).lstrip(": ")
    return type(error)(f"{where}{position}: {what}", error.code, error.field)


def place_in(batches: Sequence[TokenBatch], index: int) -> str | None:
    """Returns the place in the source of the sequence with this index, counted over the batches."""
    for batch in batches:
        if index < len(batch.sequences):
            return batch.place(index)
        index -= len(batch.sequences)
    return None


class _Kept:
    __slots__ = ("first_sequence", "batch", "first_row", "tokens")

    def __init__(self, first_sequence: int, batch: TokenBatch, first_row: int) -> None:
        self.first_sequence = first_sequence
        self.batch = batch
        self.first_row = first_row  # the number of rows of all earlier sequences
        self.tokens = sum(len(ids) for ids in batch.sequences)

    @property
    def end(self) -> int:
        return self.first_sequence + len(self.batch.sequences)


class TokenFeed:
    """Reads a source once and returns it in messages. It can return tokens again from any sequence whose rows have not
    all arrived.

    Thread-safe: the transport reads while the receiver reports rows.
    """

    def __init__(self, source: Any, selection: Selection | None) -> None:
        self._selection = selection
        self._pulling = threading.Lock()  # serializes reads of the source; held while the user's code runs
        self._state = threading.Lock()  # guards the fields below; never held while the user's code runs
        self._messages = messages(source_batches(source))
        self._kept: deque[_Kept] = deque()
        self._kept_tokens = 0
        self._sequences = 0
        self._rows = 0
        self._first_ids: set[int] = set()
        self._ended = False
        self.error: BaseException | None = None  # why nothing more can be sent

    def read(self, sequence: int) -> list[Ids] | None:
        """Returns the next message, beginning with the sequence of this index; None at the end of the source.

        Blocks while the source does. Raises what the source raises, and LookupError if the sequence is not kept
        any more."""
        with self._pulling:
            while True:
                with self._state:
                    if self.error is not None:
                        raise self.error
                    found = self._find(sequence)
                    if found is not None:
                        return found
                    if self._ended:
                        return None
                self._pull()

    def fail(self, error: BaseException) -> None:
        """Keeps an error of the sending side for the receiving side to raise. Only the first error counts."""
        with self._state:
            if self.error is None:
                self.error = error

    def received(self, rows: int) -> None:
        """Notes that this many rows of the capture have arrived, so that their tokens need not be sent again."""
        with self._state:
            # The server can ask again for the sequence after the last row, or, if it must repeat whole batches, for any
            # sequence of the same message. So a message is dropped once a row of a later message has arrived.
            while len(self._kept) > 1 and rows > self._kept[1].first_row:
                self._forget()

    def named(self, error: HooklineError) -> HooklineError:
        """Adds the place in the source to an error about a sequence that is still kept."""
        return name_place(error, self._place)

    def _place(self, sequence: int) -> str | None:
        with self._state:
            for kept in self._kept:
                if kept.first_sequence <= sequence < kept.end:
                    return kept.batch.place(sequence - kept.first_sequence)
        return None

    def _find(self, sequence: int) -> list[Ids] | None:
        if self._kept and sequence < self._kept[0].first_sequence:
            raise LookupError(
                f"the server asks for sequence {sequence} again, but those before "
                f"{self._kept[0].first_sequence} are not kept any more"
            )
        for kept in self._kept:
            if sequence < kept.end:
                return kept.batch.sequences[sequence - kept.first_sequence :]
        if sequence > self._sequences:
            raise LookupError(f"the server asks for sequence {sequence}, but only {self._sequences} were sent")
        return None

    def _pull(self) -> None:
        try:
            batch = next(self._messages, None)
        except BaseException as error:
            self.fail(error)
            raise
        with self._state:
            if batch is None:
                self._ended = True
                return
            self._look_at_first_ids(batch.sequences)
            kept = _Kept(self._sequences, batch, self._rows)
            self._kept.append(kept)
            self._kept_tokens += kept.tokens
            self._sequences = kept.end
            if self._selection is None:
                self._rows += kept.tokens
            else:
                self._rows += sum(self._selection.rows_of(ids) for ids in batch.sequences)
            while self._kept_tokens > KEPT_TOKENS and len(self._kept) > 1:
                self._forget()

    def _look_at_first_ids(self, sequences: Sequence[Ids]) -> None:
        if self._sequences >= _FIRST_SEQUENCES:
            return
        self._first_ids.update(int(ids[0]) for ids in sequences[: _FIRST_SEQUENCES - self._sequences])
        if self._sequences + len(sequences) >= _FIRST_SEQUENCES and len(self._first_ids) > 1:
            tell_without_bos("token ids sent to a server")

    def _forget(self) -> None:
        self._kept_tokens -= self._kept.popleft().tokens


def flat_ids(sequences: Sequence[Ids]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Concatenates the ids of all sequences (uint32), and returns them with each sequence's length (int64)."""
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    flat = np.concatenate([np.asarray(ids, np.uint32) for ids in sequences]) if sequences else np.empty(0, np.uint32)
    return np.ascontiguousarray(flat, np.uint32), lengths
