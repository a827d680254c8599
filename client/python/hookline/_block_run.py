"""One block of a shared capture, and the calls that try to run it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hookline._arrays import RAW_DTYPES, Block, array_block
from hookline._batches import Layout, RawBatch
from hookline._order import PlaceTracker
from hookline._request import CaptureOptions
from hookline._rows import layouts_of, memory_dtype
from hookline._session import layout_of
from hookline._sharing import Cut
from hookline.errors import FailedPreconditionError
from hookline.types import CaptureStarted, CaptureSummary, Selection

if TYPE_CHECKING:
    from hookline._receive import Receiver
    from hookline.client import Client

# The rows that a run passes on at a time: few enough that the first ones come soon, and more than a message has.
_PIECE_ROWS = 4096
_PIECE_BYTES = 4 << 20


class Piece(NamedTuple):
    """Consecutive rows: for each hook point of the capture an array (rows, width) of the raw type, None if its budget
    is used up, and the provenance columns. A hook point whose budget ends inside the piece has fewer rows."""

    arrays: list[np.ndarray[Any, Any] | None]
    columns: list[np.ndarray[Any, Any]]

    @property
    def rows(self) -> int:
        return max(len(array) for array in self.arrays if array is not None)

    def part(self, rows: slice | np.ndarray[Any, Any]) -> Piece:
        """Selects rows by a slice, or by an array of bools."""

        def of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            chosen: np.ndarray[Any, Any] = array[rows if isinstance(rows, slice) else rows[: len(array)]]
            return chosen

        return Piece([None if array is None else of(array) for array in self.arrays], [of(c) for c in self.columns])


class SharedBlock:
    """A block of a capture: what it asks for, and the rows that have come and wait for their turn. Guarded by the
    capture's lock."""

    def __init__(self, number: int, cut: Cut, budgets: Mapping[str, int]) -> None:
        self.number = number
        self.cut = cut
        self.budgets = budgets  # of the hook points that still need rows, counted from the block's beginning
        self.pieces: deque[Piece] = deque()
        self.received = 0  # rows of the hook point that has most, over all attempts
        self.is_complete = False
        self.error: Exception | None = None  # ends the capture after the rows of this block
        self.summary: CaptureSummary | None = None

    def options(self, capture: CaptureOptions, row_bytes: int) -> CaptureOptions:
        """Returns the options of a call that runs the block."""
        cut = self.cut
        selection = capture.selection
        budgets: dict[str, int] = dict(self.budgets)
        if cut.mask is not None:
            assert isinstance(selection, Selection)
            selection = dataclasses.replace(selection, sample_rows=0)
            budgets = {}
        elif cut.limit_rows:
            budgets = {name: min(rows, cut.limit_rows) for name, rows in budgets.items()}
        most = _PIECE_ROWS if cut.rows is None or cut.mask is not None else min(_PIECE_ROWS, max(1, cut.rows))
        return dataclasses.replace(
            capture,
            hook_points=list(self.budgets),
            source=cut.source,
            max_activations=None,
            max_activations_by_hook_point=budgets,
            batch_rows=max(1, min(most, _PIECE_BYTES // row_bytes)),
            selection=selection,
            provenance=capture.provenance or cut.order is not None,
            shuffle_buffer=0,
            prefetch=2,
            retry=None,
            skip_rows=0,
        )


class RawArrays:
    """Allocates memory for pieces, in the raw type of the rows."""

    def __init__(self, started: CaptureStarted) -> None:
        self._dtype = RAW_DTYPES[memory_dtype(started)]

    def allocate(self, hook_point: int, first_row: int, rows: int, width: int) -> Block:
        raw = np.empty((rows, width), self._dtype)
        return array_block(raw, raw)

    def column(self, column: np.ndarray[Any, Any]) -> Any:
        return column


class BlockRun:
    """One call of one server. Any thread can read `silent_since` and call `give_up`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.summary: CaptureSummary | None = None
        self.is_lost = False  # the server does not answer
        self._lock = threading.Lock()
        self._receiver: Receiver | None = None  # guarded by _lock
        self._cancelled = False  # guarded by _lock
        self._last_sign = time.monotonic()
        self._rests = False

    @property
    def silent_since(self) -> float:
        """The time of the server's last sign of life, by the monotonic clock; the current time while none is due."""
        return time.monotonic() if self._rests else self._last_sign

    @property
    def token_texts(self) -> Mapping[int, str]:
        """The texts of the tokens of all rows that have come, by token id."""
        with self._lock:
            receiver = self._receiver
        return {} if receiver is None else receiver.token_texts

    def sign(self) -> None:
        """Notes that the server has given a sign of life."""
        self._last_sign = time.monotonic()

    def rest(self, rests: bool) -> None:
        """Says whether the run is resting: the server waits for this process, and not the reverse."""
        self._rests = rests
        self.sign()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            receiver = self._receiver
        if receiver is not None:
            receiver.cancel()

    def give_up(self) -> None:
        """Ends a run whose server does not answer."""
        self.is_lost = True
        self.cancel()

    def started(self, options: CaptureOptions) -> CaptureStarted:
        """Returns the grant of a capture, without reading its rows."""
        receiver = self._open(options)
        try:
            return receiver.started()
        finally:
            receiver.close()

    def pieces(
        self, block: SharedBlock, options: CaptureOptions, names: Sequence[str], check: Callable[[CaptureStarted], None]
    ) -> Iterator[Piece]:
        """Yields the rows of a block from its beginning on, after `check` of the grant. Raises the error with which the
        call failed; rows of an incomplete batch are then left out."""
        cut = block.cut
        receiver = self._open(options)
        try:
            started = receiver.started()
            self.sign()
            check(started)
            layout = layout_of(started, options)
            tracker = PlaceTracker(cut.order, cut.place) if cut.order is not None else None
            sent = taken = 0  # rows that the server sent, and how many of them belong to the block
            for raw in self._whole_batches(receiver, layout):
                piece = _piece(raw, layout, names)
                if piece.columns and cut.first_sequence:
                    piece.columns[0] += cut.first_sequence
                sent += piece.rows
                if cut.mask is not None:
                    piece = piece.part(cut.mask[sent - piece.rows : sent])
                    piece = _within(piece, taken, names, block.budgets)
                has_ended = False
                if tracker is not None:
                    places = tracker.places(*piece.columns[:2])
                    rows = int(np.searchsorted(places, cut.place + cut.sequences))
                    has_ended = rows < piece.rows
                    piece = piece.part(slice(rows))
                if piece.rows:
                    taken += piece.rows
                    yield piece
                if has_ended:
                    return
            self.summary = receiver.summary
            self._check_rows(block, taken, started)
        finally:
            receiver.close()

    def _open(self, options: CaptureOptions) -> Receiver:
        receiver = self.client.receive(options, RawArrays)
        with self._lock:
            self._receiver = receiver
            cancelled = self._cancelled
        if cancelled:
            receiver.cancel()
        return receiver

    def _whole_batches(self, receiver: Receiver, layout: Layout) -> Iterator[RawBatch]:
        """Yields the batches; a short batch only after the capture has ended well, since a failed capture can have
        one, too."""
        short = None
        while True:
            raw = receiver.next()
            self.sign()
            if raw is None:
                break
            if all(rows == layout.rows(raw.index, i) for i, rows in enumerate(raw.rows)):
                yield raw
            else:
                short = raw
        if short is not None:
            yield short

    def _check_rows(self, block: SharedBlock, taken: int, started: CaptureStarted) -> None:
        if block.cut.rows is None:
            return
        expected = min(block.cut.rows, max(block.budgets.values()))
        if taken != expected:
            most = max(point.max_activations for point in started.hook_points)
            raise FailedPreconditionError(
                f"{self.client.address}: sent {taken} of the {expected} rows of a block (it grants {most} rows in a "
                "capture, --max-rows)"
            )


def _piece(raw: RawBatch, layout: Layout, names: Sequence[str]) -> Piece:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, block, rows in zip(layout.names, raw.blocks, raw.rows):
        if block is not None and rows:
            arrays[name] = block.raw[:rows]
    return Piece([arrays.get(name) for name in names], [column[: max(raw.rows)] for column in raw.columns])


def _within(piece: Piece, taken: int, names: Sequence[str], budgets: Mapping[str, int]) -> Piece:
    """Returns the piece's rows that are within the budgets, of which `taken` rows are used up."""
    arrays = [
        None if array is None else array[: max(0, budgets[name] - taken)] for name, array in zip(names, piece.arrays)
    ]
    rows = max(len(array) for array in arrays if array is not None)
    return Piece(arrays, [column[:rows] for column in piece.columns])


def row_bytes_of(started: CaptureStarted) -> int:
    """The bytes of a row of all hook points together."""
    return sum(layout.row_bytes for layout in layouts_of(started))
