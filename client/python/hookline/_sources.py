"""Token ids in all the forms in which people hold them, and their way to the server.

`TokenFeed` keeps what it sent until rows of later sequences have arrived, so that a capture survives a reconnect
whatever its source is: a list, a loader that shuffles, or a generator that can be read once only.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Deque, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from hookline.types import Dataset, Feed, Recording, Selection

# One message to the server holds at most this many ids: 5 bytes each at most, well below gRPC's 4 MiB default limit.
MESSAGE_TOKENS = 1 << 16
# Ids kept for a reconnect. Reached only where the server runs that many without a single row coming back.
KEPT_TOKENS = 16 << 20

Ids = Union[List[int], "np.ndarray[Any, Any]"]


def _as_array(value: Any) -> Any:
    """torch tensors, and whatever numpy reads, as a numpy array; lists and others as they are."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu().numpy()
    elif not isinstance(value, np.ndarray) and hasattr(value, "__array__") and not np.isscalar(value):
        value = np.asarray(value)
    return value


def _checked_array(array: "np.ndarray[Any, Any]", where: str) -> "np.ndarray[Any, Any]":
    if array.dtype.kind not in "iu":
        raise TypeError(f"{where}: token ids are integers, not {array.dtype}")
    if array.size:
        wrong = (array < 0) | (array > 0xFFFFFFFF) if array.dtype.itemsize > 4 or array.dtype.kind == "i" else None
        if wrong is not None and wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{where}{list(place)}: {array[place]} is no token id")
    return array


def _checked_ids(sequence: Any, where: str) -> Ids:
    value = _as_array(sequence)
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise TypeError(f"{where}: a sequence has one dimension, not {value.ndim}")
        return _checked_array(value, where)
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{where}: {type(sequence).__name__} is no sequence of token ids")
    ids = list(value)
    for position, token in enumerate(ids):
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool):
            raise TypeError(f"{where}[{position}]: token ids are integers, not {type(token).__name__}")
        if not 0 <= token <= 0xFFFFFFFF:
            raise ValueError(f"{where}[{position}]: {token} is no token id")
    return ids


def _is_batch(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2


def _holds_sequences(value: Any) -> bool:
    """Whether a member of a list is itself a batch, rather than a sequence or a token id."""
    if _is_batch(value) or hasattr(value, "keys"):
        return True
    return isinstance(value, (list, tuple)) and bool(value) and not isinstance(value[0], (int, np.integer))


def batch_sequences(batch: Any) -> List[Ids]:
    """The token sequences of one batch.

    A tensor or array of two dimensions has one sequence a row, of one dimension it is one sequence. A dict has them
    under `input_ids` or `idx`. A list or tuple is either a batch with further members, such as targets, which are left
    out (its first member is a tensor of two dimensions or a list of sequences beside others of the same kind), or a
    list of sequences, or of token ids, which are one sequence.
    """
    if hasattr(batch, "keys") and hasattr(batch, "__getitem__"):
        for key in ("input_ids", "idx"):
            if key in batch:
                return batch_sequences(batch[key])
        raise TypeError(
            f"batch: a dict holds token ids as input_ids or idx; this one has {sorted(map(str, batch.keys()))}"
        )
    value = _as_array(batch)
    if isinstance(value, np.ndarray):
        if value.ndim not in (1, 2):
            raise TypeError(f"batch: token ids have one or two dimensions, not {value.ndim}")
        checked = _checked_array(value, "batch")
        return [checked] if value.ndim == 1 else list(checked)
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"batch: {type(batch).__name__} holds no token ids")
    if len(value) == 0:
        return []
    first = value[0]
    if _holds_sequences(first):
        return batch_sequences(first)
    if isinstance(first, (int, np.integer)):
        return [_checked_ids(value, "batch")]
    return [_checked_ids(sequence, f"batch[{index}]") for index, sequence in enumerate(value)]


def source_batches(source: Any) -> Iterator[List[Ids]]:
    """The batches of a source that is not the server's: token ids as `batch_sequences` takes them, a list of 2-d
    batches, or an iterable of batches."""
    if isinstance(source, (str, bytes)):
        raise TypeError(f"source: {type(source).__name__} holds no token ids; tokenize it first")
    if isinstance(source, (list, tuple)) and source and _holds_sequences(source[0]):
        return map(batch_sequences, source)
    if _is_batch(source):
        return _row_blocks(source)
    if isinstance(source, (list, tuple, range)) or hasattr(source, "keys") or hasattr(source, "__array__"):
        return iter([batch_sequences(source)])
    if hasattr(source, "__iter__"):
        return map(batch_sequences, source)
    raise TypeError(
        f"source: {type(source).__name__} is none of a tensor, array or list of token ids, an iterable of batches, "
        "hookline.Dataset, hookline.Feed, hookline.Recording"
    )


def _row_blocks(array: Any) -> Iterator[List[Ids]]:
    """A tensor or array of two dimensions in pieces of a message: one mapped from a file is read as it is sent."""
    step = max(1, MESSAGE_TOKENS // max(1, array.shape[1]))
    for first in range(0, len(array), step):
        yield list(_checked_array(_as_array(array[first : first + step]), f"source[{first}:]"))


def is_server_source(source: Any) -> bool:
    """Whether the server reads the source itself."""
    return isinstance(source, (Dataset, Feed, Recording))


def can_be_read_again(source: Any) -> bool:
    """Whether a source can be read from its start once more: all but iterators, which are used up."""
    return is_server_source(source) or not isinstance(source, Iterator)


def messages(batches: Iterable[List[Ids]]) -> Iterator[List[Ids]]:
    """Cuts batches to what one message may hold. Batches without sequences are left out."""
    for batch in batches:
        part: List[Ids] = []
        tokens = 0
        for ids in batch:
            if part and tokens + len(ids) > MESSAGE_TOKENS:
                yield part
                part, tokens = [], 0
            part.append(ids)
            tokens += len(ids)
        if part:
            yield part


class _Kept:
    __slots__ = ("first_sequence", "sequences", "first_row", "tokens")

    def __init__(self, first_sequence: int, sequences: List[Ids], first_row: int) -> None:
        self.first_sequence = first_sequence
        self.sequences = sequences
        self.first_row = first_row  # rows that the sequences before these bring
        self.tokens = sum(len(ids) for ids in sequences)


class TokenFeed:
    """Reads a source once and gives it out in messages, again from any sequence that rows are still missing of.

    Thread-safe: the transport reads while the receiver reports rows.
    """

    def __init__(self, source: Any, selection: Optional[Selection]) -> None:
        self._selection = selection
        self._pulling = threading.Lock()  # serializes the source; held while the user's code runs
        self._state = threading.Lock()  # guards what follows; never held while the user's code runs
        self._messages = messages(source_batches(source))
        self._kept: Deque[_Kept] = deque()
        self._kept_tokens = 0
        self._sequences = 0
        self._rows = 0
        self._ended = False
        self.error: Optional[BaseException] = None  # why nothing more can be sent

    def read(self, sequence: int) -> Optional[List[Ids]]:
        """The next message, beginning with the sequence of this index; None at the end of the source.

        Blocks while the source does. Raises what the source raises, and LookupError if the sequence is gone."""
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
        """Keeps what went wrong on the sending side, for the receiving one to raise. The first error counts."""
        with self._state:
            if self.error is None:
                self.error = error

    def received(self, rows: int) -> None:
        """So many rows, from the start of the capture, have arrived: what came before them need not be sent again."""
        with self._state:
            # The server may ask again from the sequence after the last row on, and if it must repeat whole batches,
            # from any sequence of the same message: a message goes once a row of a later one is here.
            while len(self._kept) > 1 and rows > self._kept[1].first_row:
                self._forget()

    def _find(self, sequence: int) -> Optional[List[Ids]]:
        if self._kept and sequence < self._kept[0].first_sequence:
            raise LookupError(
                f"the server asks for sequence {sequence} again, but those before "
                f"{self._kept[0].first_sequence} are gone"
            )
        for kept in self._kept:
            if sequence < kept.first_sequence + len(kept.sequences):
                return kept.sequences[sequence - kept.first_sequence :]
        if sequence > self._sequences:
            raise LookupError(f"the server asks for sequence {sequence}, but only {self._sequences} were sent")
        return None

    def _pull(self) -> None:
        try:
            sequences = next(self._messages, None)
        except BaseException as error:
            self.fail(error)
            raise
        with self._state:
            if sequences is None:
                self._ended = True
                return
            kept = _Kept(self._sequences, sequences, self._rows)
            self._kept.append(kept)
            self._kept_tokens += kept.tokens
            self._sequences += len(sequences)
            if self._selection is None:
                self._rows += kept.tokens
            else:
                self._rows += sum(self._selection.rows_of(ids) for ids in sequences)
            while self._kept_tokens > KEPT_TOKENS and len(self._kept) > 1:
                self._forget()

    def _forget(self) -> None:
        self._kept_tokens -= self._kept.popleft().tokens


def flat_ids(sequences: Sequence[Ids]) -> Tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """All ids one after another (uint32), and each sequence's length (int64)."""
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    flat = np.concatenate([np.asarray(ids, np.uint32) for ids in sequences]) if sequences else np.empty(0, np.uint32)
    return np.ascontiguousarray(flat, np.uint32), lengths
