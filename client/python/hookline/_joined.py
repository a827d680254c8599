"""Reads several recordings as one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import numpy as np

from hookline import _calls, _lifetime, _protocol
from hookline._arrays import Allocator
from hookline._batches import Assembler, RawBatch
from hookline._block_run import RawArrays
from hookline._notes import asked_rows
from hookline._order import mix, shuffled_rows
from hookline._receive import OwnThread, Pipe, Receiver
from hookline._request import CaptureOptions
from hookline._session import layout_of
from hookline._summaries import sum_of
from hookline.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from hookline.types import CaptureStarted, CaptureSummary, HookPointSummary, Recording

if TYPE_CHECKING:
    from hookline.client import Client

# The most recordings that are shuffled together. All are read at once, each with a stream and a thread of its own, and
# a server allows about a hundred streams on a connection.
MAX_SHUFFLED = 64
# The rows that are mixed at a time. Each recording is read in batches of its share of them.
_MIXED_ROWS = 4096


class _Part(NamedTuple):
    """A recording, and which of its rows are read."""

    label: str  # as the user named it
    client: Client
    name: str
    message: Any  # the proto Recording
    first_row: int
    rows: int

    @property
    def source(self) -> Recording:
        return Recording(self.name, self.first_row, self.rows)

    def rows_of(self, hook_point: str) -> int:
        """Returns how many of the rows that are read a hook point has."""
        recorded = next(point.rows for point in self.message.hook_points if point.hook_point == hook_point)
        return int(max(0, min(recorded - self.first_row, self.rows)))


class JoinedReceiver(OwnThread):
    """A `Receiver` of several recordings, one after another or shuffled together.

    place: returns the client of a recording that the user named, and the recording's name on that client's server. The
        receiver's thread calls it, and it may call servers.
    """

    def __init__(
        self,
        place: Callable[[str], tuple[Client, str]],
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
        answer_seconds: float | None,
    ) -> None:
        self._place = place
        self._options = options
        self._source: Recording = options.source
        self._make_allocator = make_allocator
        self._answer_seconds = answer_seconds
        self._pipe = Pipe(options.prefetch)
        self._started: CaptureStarted | None = None
        self._failure: BaseException | None = None  # set before _is_started
        self._is_started = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: list[Receiver] = []  # guarded by _lock
        self.summary: CaptureSummary | None = None
        self.token_texts: dict[int, str] = {}
        self._sum: CaptureSummary | None = None
        self._assembler: Assembler | None = None
        self._thread = threading.Thread(target=self._run, name="hookline-joined", daemon=True)
        _lifetime.opened(self)
        self._thread.start()

    def started(self) -> CaptureStarted:
        self._check_process()
        self._is_started.wait()
        if self._started is None:
            raise self._failure or CancelledError("the capture was closed before it started")
        return self._started

    def cancel(self) -> None:
        self._closed.set()
        with self._lock:
            receivers = list(self._open)
        for receiver in receivers:
            receiver.cancel()

    def _run(self) -> None:
        try:
            parts = self._parts()
            is_shuffled = self._source.shuffle_seed is not None and len(parts) > 1
            read = self._read_shuffled if is_shuffled else self._read_in_order
            read(parts)
            assert self._assembler is not None
            self._put(self._assembler.finish())
            self.summary = self._summary()
            self._pipe.end()
        except BaseException as error:
            self._failure = error
            if self._assembler is not None:
                self._put(self._assembler.finish())
            self._pipe.end(CancelledError("the capture was closed") if self._closed.is_set() else error)
        finally:
            with self._lock:
                receivers, self._open = self._open, []
            for receiver in receivers:
                receiver.close()
            self._is_started.set()
            _lifetime.ended(self)

    def _parts(self) -> list[_Part]:
        """Returns the recordings of which rows are read, at least one. FailedPreconditionError if two are not alike."""
        described: list[_Part] = []
        for label in self._source.names:
            client, name = self._place(label)
            message = client.call(_calls.describe_recording(name), self._answer_seconds)
            described.append(_Part(label, client, name, message, 0, message.rows))
            check_alike(described[0].label, described[0].message, label, message)
        total = sum(part.rows for part in described)
        first = self._source.first_row
        if not 0 <= first <= total:
            raise InvalidArgumentError(
                f"first_row: {first} is not from 0 to {total}, the number of rows of {', '.join(self._source.names)}",
                field="first_row",
            )
        if self._source.row_count < 0:
            raise InvalidArgumentError(f"row_count: {self._source.row_count} is negative", field="row_count")
        end = min(total, first + self._source.row_count) if self._source.row_count else total
        parts, row = [], 0
        for part in described:
            begin, stop = max(first, row), min(end, row + part.rows)
            if begin < stop:
                parts.append(part._replace(first_row=begin - row, rows=stop - begin))
            row += part.rows
        return parts or [described[-1]._replace(first_row=described[-1].rows, rows=0)]

    def _receive(self, part: _Part, seed: int | None, batch_rows: int, **changes: Any) -> Receiver:
        """Opens a read of a part."""
        source = dataclasses.replace(part.source, shuffle_seed=seed)
        options = dataclasses.replace(
            self._options, source=source, batch_rows=batch_rows, shuffle_buffer=0, skip_rows=0, **changes
        )
        receiver = part.client.receive(options, RawArrays)
        with self._lock:
            self._open.append(receiver)
        if self._closed.is_set():
            receiver.cancel()
        return receiver

    def _finish(self, receiver: Receiver) -> None:
        """Closes a read that has ended, and adds its summary."""
        with self._lock:
            self._open.remove(receiver)
        summary = receiver.summary
        receiver.close()
        if summary is not None:
            assert self._started is not None
            widths = {point.name: self._started.top_k or point.width for point in self._started.hook_points}
            self._sum = summary if self._sum is None else sum_of(self._sum, summary, widths, 0)

    def _start(self, started: CaptureStarted, parts: Sequence[_Part]) -> None:
        """Makes the grant from `started` of the first part, with the rows of all parts."""
        points = []
        for point in started.hook_points:
            rows = [part.rows_of(point.name) for part in parts]
            for part, count in list(zip(parts, rows))[:-1]:
                if count != part.rows:
                    raise FailedPreconditionError(
                        f"recording {part.label}: {point.name} has only {count} of the {part.rows} rows, so that rows "
                        f"of {parts[-1].label} would not line up with other hook points; leave {point.name} out"
                    )
            asked = asked_rows(self._options, point.name)
            budget = sum(rows) if asked is None else min(asked, sum(rows))
            points.append(dataclasses.replace(point, max_activations=budget))
        started = dataclasses.replace(started, hook_points=tuple(points))
        self._assembler = Assembler(layout_of(started, self._options), self._make_allocator(started))
        self._started = started
        self._is_started.set()

    def _left(self) -> dict[str, int]:
        """Returns how many rows each hook point still takes, without those that are full."""
        assert self._assembler is not None
        layout, received = self._assembler.layout, self._assembler.received
        left = {name: budget - rows for name, budget, rows in zip(layout.names, layout.budgets, received)}
        return {name: rows for name, rows in left.items() if rows > 0}

    def _read_in_order(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            changes: dict[str, Any] = {}
            if self._assembler is not None:
                left = self._left()
                if not left:
                    return
                changes = dict(hook_points=list(left), max_activations=None, max_activations_by_hook_point=left)
            receiver = self._receive(part, self._source.shuffle_seed, self._options.batch_rows, **changes)
            started = receiver.started()
            if self._assembler is None:
                self._start(started, parts)
            self._check_grant(part, started, self._left())
            while (raw := receiver.next()) is not None:
                self.token_texts.update(receiver.token_texts)
                self._write([None if b is None else b.raw[:n] for b, n in zip(raw.blocks, raw.rows)], started, raw)
            self._finish(receiver)

    def _check_grant(self, part: _Part, started: CaptureStarted, most: Mapping[str, int]) -> None:
        """Raises FailedPreconditionError if a part is no longer the recording that was described.

        most: the rows that were asked for, by hook point; other hook points have no bound.
        """
        assert self._started is not None
        widths = {point.name: point.width for point in self._started.hook_points}
        for point in started.hook_points:
            rows = part.rows_of(point.name)
            expected = (widths[point.name], min(rows, most.get(point.name, rows)))
            if (point.width, point.max_activations) != expected:
                raise FailedPreconditionError(
                    f"recording {part.label}: {point.name} has {point.max_activations} rows of width {point.width} "
                    f"instead of {expected[1]} of width {expected[0]}; it was changed while it was read"
                )

    def _write(self, arrays: Sequence[np.ndarray[Any, Any] | None], started: CaptureStarted, raw: RawBatch) -> None:
        """Takes consecutive rows of the hook points of `started`."""
        assert self._assembler is not None
        names = self._assembler.layout.names
        for point, array in zip(started.hook_points, arrays):
            if array is not None and len(array):
                values = array.reshape(-1).view("u1")
                columns = [column[: len(array)] for column in raw.columns]
                self._assembler.write(names.index(point.name), len(array), values, columns)
        self._deliver()

    def _deliver(self) -> None:
        assert self._assembler is not None
        if not self._put(self._assembler.complete()):
            raise CancelledError("the capture was closed")

    def _put(self, batches: Iterator[RawBatch]) -> bool:
        """Hands over batches. Returns whether the consumer still wants them."""
        return all(self._pipe.put(batch) for batch in batches)

    def _read_shuffled(self, parts: Sequence[_Part]) -> None:
        """Reads each part in a shuffled order of its own, and merges them by the shuffled order of all rows: it says
        from which part each row is taken. Every order of the rows is equally likely."""
        seed = self._source.shuffle_seed
        assert seed is not None
        if len(parts) > MAX_SHUFFLED:
            raise InvalidArgumentError(
                f"shuffle_seed: {len(parts)} recordings; at most {MAX_SHUFFLED} can be shuffled together",
                field="shuffle_seed",
            )
        rows = max(1, _MIXED_ROWS // len(parts))
        streams: list[_Rows] = []
        for index, part in enumerate(parts):
            own = mix(seed ^ mix(index + 1)) >> 1  # seeds have 63 bits here
            names = {} if index == 0 else {"hook_points": [p.name for p in streams[0].receiver.started().hook_points]}
            receiver = self._receive(part, own, rows, max_activations=None, max_activations_by_hook_point={}, **names)
            streams.append(_Rows(receiver))
        self._start(streams[0].receiver.started(), parts)
        assert self._assembler is not None
        for part, stream in zip(parts, streams):
            self._check_grant(part, stream.receiver.started(), {})
        layout = self._assembler.layout
        ends = np.cumsum([part.rows for part in parts])
        for first in range(0, int(ends[-1]), _MIXED_ROWS):
            left = self._left()
            if not left:
                return
            count = min(_MIXED_ROWS, int(ends[-1]) - first)
            owners = np.searchsorted(ends, shuffled_rows(int(ends[-1]), seed, first, count), side="right")
            mixed: list[np.ndarray[Any, Any]] | None = None
            for index, stream in enumerate(streams):
                places = np.flatnonzero(owners == index)
                for taken, arrays in stream.take(len(places)):
                    if mixed is None:
                        mixed = [np.empty((count, *array.shape[1:]), array.dtype) for array in arrays]
                    for target, array in zip(mixed, arrays):
                        target[places[taken : taken + len(array)]] = array
                self.token_texts.update(stream.receiver.token_texts)
            assert mixed is not None
            points = len(layout.names)
            for hook_point, name in enumerate(layout.names):
                wanted = min(count, left.get(name, 0))
                if wanted:
                    values = mixed[hook_point][:wanted].reshape(-1).view("u1")
                    self._assembler.write(hook_point, wanted, values, [c[:wanted] for c in mixed[points:]])
            self._deliver()
        for stream in streams:
            stream.check_end()
            self._finish(stream.receiver)

    def _summary(self) -> CaptureSummary:
        assert self._started is not None and self._assembler is not None
        nothing = HookPointSummary(0, 0, 0.0, 0.0, 0.0, 0, 0)
        points = {} if self._sum is None else self._sum.hook_points
        told = {
            point.name: dataclasses.replace(points.get(point.name, nothing), rows=rows)
            for point, rows in zip(self._started.hook_points, self._assembler.received)
        }
        reason = "source_ended" if self._options.max_activations is None else "budget"  # as with one recording
        sum_ = self._sum or CaptureSummary(reason, told, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return dataclasses.replace(sum_, stop_reason=reason, hook_points=told)


class _Rows:
    """Reads the rows of a receiver, any number at a time. All hook points have the same number of rows."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._arrays: list[np.ndarray[Any, Any]] = []  # one for each hook point, then the provenance columns
        self._taken = 0  # the number of their rows that were taken

    def take(self, rows: int) -> Iterator[tuple[int, list[np.ndarray[Any, Any]]]]:
        """Yields the next rows in pieces, each with the number of rows before it."""
        done = 0
        while done < rows:
            if not self._arrays or self._taken == len(self._arrays[0]):
                self._next()
            count = min(rows - done, len(self._arrays[0]) - self._taken)
            yield done, [array[self._taken : self._taken + count] for array in self._arrays]
            self._taken += count
            done += count

    def check_end(self) -> None:
        """Waits for the receiver's end after all rows were taken. Raises an error if there are more rows."""
        if self.receiver.next() is not None:
            raise FailedPreconditionError("a recording grew while it was read; read it again")

    def _next(self) -> None:
        raw = self.receiver.next()
        if raw is None:
            raise FailedPreconditionError("a recording lost rows while it was read; read it again")
        self._arrays = [block.raw[:rows] for block, rows in zip(raw.blocks, raw.rows) if block is not None]
        self._arrays += [column[: max(raw.rows)] for column in raw.columns]
        self._taken = 0


def check_alike(first: str, a: Any, other: str, b: Any) -> None:
    """Raises FailedPreconditionError, with both values, unless two proto Recordings can be read as one."""
    for what, mine, theirs in (
        ("fingerprint", a.fingerprint, b.fingerprint),
        ("dtype", _protocol.DTYPES.get(a.dtype, "unspecified"), _protocol.DTYPES.get(b.dtype, "unspecified")),
        ("top_k", a.top_k, b.top_k),
        ("hook_points", _hook_points(a), _hook_points(b)),
        ("selection", _selection(a), _selection(b)),
        ("deterministic", a.deterministic, b.deterministic),
    ):
        if mine != theirs:
            raise FailedPreconditionError(
                f"{what}: recording {first} has {_shown(mine, theirs)} and {other} has {_shown(theirs, mine)}; "
                "recordings that are read as one must be alike"
            )


def _hook_points(recording: Any) -> dict[str, int]:
    return {point.hook_point: point.width for point in recording.hook_points}


def _selection(recording: Any) -> dict[str, Any]:
    fields: Mapping[Any, Any] = {field.name: value for field, value in recording.selection.ListFields()}
    return {name: list(value) if name == "exclude_token_ids" else value for name, value in fields.items()}


def _shown(mine: Any, other: Any) -> str:
    """Formats one of two values that differ; of mappings, only the entries that differ."""
    if not isinstance(mine, dict):
        return str(mine)
    shown = {name: value for name, value in mine.items() if name not in other or other[name] != value}
    return ", ".join(f"{name}={value}" for name, value in shown.items()) or "none but those of both"
