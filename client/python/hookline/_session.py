"""Handles the messages of a capture, apart from how they travel.

A session lasts through reconnects. The transport asks it how to call the server, gives it each message, and asks at the
end of each call what to do next. The transports on `grpc` and on `grpc.aio` both use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np

from hookline import _protocol
from hookline._arrays import Allocator
from hookline._batches import Assembler, Layout, RawBatch
from hookline._from_messages import capture_started, capture_summary
from hookline._request import CaptureOptions, token_batch
from hookline._rows import RowLayout, layouts_of, memory_dtype
from hookline._shared_memory import SharedMemory
from hookline._sources import TokenFeed
from hookline._summaries import merge_summaries
from hookline._wire import split_chunk
from hookline.errors import FailedPreconditionError, HooklineError, InternalError, UnavailableError
from hookline.types import CaptureStarted, CaptureSummary

# The most tokens whose texts are kept: several times the largest vocabularies of published models.
MAX_TOKEN_TEXTS = 1 << 21
# The stop reasons after which rows of the capture are still missing.
_CUT_SHORT = ("cancelled", "shutting_down", "error")


def layout_of(started: CaptureStarted, options: CaptureOptions) -> Layout:
    """Returns the shape of the granted stream. ValueError if its dtype is not the one that was asked for."""
    options.check_granted(started)
    return Layout(
        names=tuple(point.name for point in started.hook_points),
        widths=tuple(layout.width if layout.is_plain else layout.row_bytes for layout in layouts_of(started)),
        budgets=tuple(point.max_activations for point in started.hook_points),
        dtype=memory_dtype(started),
        batch_rows=options.batch_rows,
        provenance=options.provenance,
    )


def check_same_capture(before: CaptureStarted, now: CaptureStarted) -> None:
    """Raises FailedPreconditionError if the server reached by a reconnect cannot continue the capture."""
    for what in ("fingerprint", "dtype", "top_k", "hook_points"):
        if getattr(before, what) != getattr(now, what):
            raise FailedPreconditionError(
                f"after the reconnect the server grants another {what}: {getattr(now, what)!r} "
                f"instead of {getattr(before, what)!r}"
            )


def aligned_rows(layout: Layout, batch: int, rows: Sequence[int]) -> list[int]:
    """Counts the rows of each hook point that belong to the same tokens, in a batch that was cut off anywhere: as many
    as the hook point that is furthest behind has, and never more than its budget."""
    missing = [count for index, count in enumerate(rows) if count < layout.rows(batch, index)]
    return [min(count, *missing) if missing else count for count in rows]


class Progress:
    """Decides whether and when to reconnect."""

    def __init__(self, options: CaptureOptions) -> None:
        self._retry = options.retry
        self._failures = 0
        self.reconnects = 0

    def rows_came(self) -> None:
        self._failures = 0

    def delay(self, error: HooklineError, has_started: bool) -> float:
        """Returns the seconds until the reconnect; raises `error` if there is to be none. A call that never got an
        answer is not retried, so that a wrong address is reported at once. If a quota or a full queue is the reason,
        and the server says when to try again, the call is retried then."""
        self._failures += 1
        delay = self._retry.delay(self._failures) if self._retry is not None else None
        if error.retry_after is not None and delay is not None:
            return max(delay, error.retry_after)
        if not isinstance(error, UnavailableError) or not has_started or delay is None:
            raise error
        self.reconnects += 1
        return delay


def raise_source_error(feed: TokenFeed | None, started: CaptureStarted | None, summary: CaptureSummary) -> None:
    """Raises the source's error after the capture's end, unless the rows before the error filled all budgets."""
    if feed is None or feed.error is None:
        return
    for point in started.hook_points if started is not None else ():
        told = summary.hook_points.get(point.name)
        if told is None or told.rows < point.max_activations:
            raise feed.error


class Session:
    """One capture over any number of calls."""

    def __init__(
        self,
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
        offer_memory: Callable[[], SharedMemory | None],
    ) -> None:
        self.feed = TokenFeed(options.source, options.selection) if options.streams_tokens else None
        self.started: CaptureStarted | None = None
        self.summary: CaptureSummary | None = None
        self.token_texts: dict[int, str] = {}  # by token id, of the rows that have come
        self._options = options
        self._make_allocator = make_allocator
        self._offer_memory = offer_memory
        self._memory: SharedMemory | None = None
        self._request = options.message()
        self._progress = Progress(options)
        self._assembler: Assembler | None = None
        self._index: dict[str, int] = {}
        self._rows: tuple[RowLayout, ...] = ()
        self._call_started: CaptureStarted | None = None
        self._summary_message: Any = None  # of all calls that have sent one
        self._ended_well = False

    def call(self) -> tuple[str, bytes, list[tuple[str, str]]]:
        """Returns the method, the first message and the metadata of the next call. Call `hang_up` after that call."""
        self._memory = self._offer_memory()
        self._call_started = None
        self._ended_well = False
        message = self._request if self.feed is None else _protocol.CaptureStreamRequest(request=self._request)
        return (
            self._options.method,
            message.SerializeToString(),
            [] if self._memory is None else [self._memory.metadata],
        )

    def hang_up(self) -> None:
        """Frees what belongs to a call, after its end."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    @property
    def next_sequence(self) -> int | None:
        """The first sequence that this call is to send. After a reconnect, None until the server has named it."""
        if self._call_started is not None:
            return self._call_started.next_sequence
        return None if self._request.resume_token else 0

    @property
    def is_granted(self) -> bool:
        """True if the server has accepted this call's request."""
        return self._call_started is not None

    def tokens(self, sequence: int) -> tuple[bytes, int] | None:
        """Returns the next message of tokens from this sequence on, and the sequence after it; None at the end of the
        source. Blocks while the source does. If the source fails, returns None, and `end` raises the error."""
        assert self.feed is not None
        try:
            sequences = self.feed.read(sequence)
        except BaseException as error:
            self.feed.fail(error)
            return None
        if sequences is None:
            return None
        message = _protocol.CaptureStreamRequest(tokens=token_batch(sequences))
        return message.SerializeToString(), sequence + len(sequences)

    def receive(self, message: bytes) -> Iterator[RawBatch]:
        """Takes a message, and yields the batches that are full now."""
        try:
            chunk = split_chunk(message)
            response: Any = _protocol.CaptureResponse.FromString(message) if chunk is None else None
        except Exception as error:
            raise InternalError(f"the server sent an unreadable CaptureResponse: {error}") from error
        if chunk is not None:
            yield from self._receive_chunk(message, *chunk)
            return
        kind = response.WhichOneof("kind")
        if kind == "started":
            self._receive_started(response.started)
        elif kind == "summary":
            self._receive_summary(response.summary)
        elif kind == "chunk":
            data = response.chunk.data
            yield from self._receive_chunk(data, response.chunk, 0, len(data))

    def end(self, error: HooklineError | None) -> float | None:
        """Takes the end of a call, with this error or without one. Returns the seconds until the next call, or None if
        the capture has ended well. Raises the error with which the capture failed."""
        if error is None and self._ended_well and self.summary is not None:
            raise_source_error(self.feed, self.started, self.summary)
            return None
        if error is None:
            error = UnavailableError("the server ended the stream without a summary of the whole capture")
        if self.feed is not None:
            error = self.feed.named(error)
        return self._progress.delay(error, self.started is not None)

    def finish(self) -> Iterator[RawBatch]:
        """Yields the last, short batch, once `end` has returned None."""
        if self._assembler is not None:
            yield from self._assembler.finish()

    def broken(self) -> Iterator[RawBatch]:
        """Yields the batch that was being filled when the capture failed, with the rows that had come."""
        if self._assembler is not None:
            for batch in self._assembler.finish():
                batch.rows = aligned_rows(self._assembler.layout, batch.index, batch.rows)
                if any(batch.rows):
                    yield batch
                if not all(rows == self._assembler.layout.rows(batch.index, i) for i, rows in enumerate(batch.rows)):
                    return

    def _receive_started(self, message: Any) -> None:
        now = capture_started(message)
        if self.started is not None:
            check_same_capture(self.started, now)
        else:
            self._index = {point.name: i for i, point in enumerate(now.hook_points)}
            self._rows = layouts_of(now)
            self._assembler = Assembler(layout_of(now, self._options), self._make_allocator(now))
            self.started = now
        self._call_started = now
        if self._memory is not None:
            self._memory.set_message_bytes(now.max_message_bytes)
        if message.resume_token:
            self._request.resume_token = message.resume_token

    def _receive_summary(self, message: Any) -> None:
        started = self.started
        if started is None:
            raise InternalError("the server sent a summary before its grant")
        if len(message.hook_points) != len(started.hook_points):
            raise InternalError(
                f"the server's summary has {len(message.hook_points)} hook points instead of {len(started.hook_points)}"
            )
        self._ended_well = _protocol.STOP_REASONS.get(message.stop_reason) not in _CUT_SHORT
        if message.resume_token:
            self._request.resume_token = message.resume_token
        before = self._summary_message
        self._summary_message = message if before is None else merge_summaries(started, before, message)
        self.summary = capture_summary(self._summary_message, self._progress.reconnects)

    def _receive_chunk(self, message: bytes, chunk: Any, offset: int, length: int) -> Iterator[RawBatch]:
        assembler = self._assembler
        if assembler is None:
            raise InternalError("the server sent rows before its grant")
        hook_point = self._index.get(chunk.hook_point)
        if hook_point is None:
            raise InternalError(f"the server sent rows of {chunk.hook_point!r}, which it had not granted")
        layout = assembler.layout
        expected = assembler.received[hook_point]
        if chunk.first_row != expected:
            raise InternalError(f"{chunk.hook_point}: row {chunk.first_row} came where row {expected} was due")
        row = self._rows[hook_point]
        dtype = _protocol.DTYPES.get(chunk.dtype)
        needed = chunk.rows * row.row_bytes
        is_shared = chunk.HasField("data_offset")
        if (
            chunk.rows < 1
            or chunk.width != row.width
            or chunk.top_k != row.top_k
            or dtype != row.dtype
            or length != (0 if is_shared else needed)
        ):
            raise InternalError(
                f"{chunk.hook_point}: a chunk of {length} bytes claims {chunk.rows} rows of {chunk.width} {dtype}, "
                f"but {row.width} {row.dtype} were granted"
            )
        columns = self._columns(chunk) if layout.provenance else ()
        if len(chunk.token_text) == len(chunk.token_id) and len(self.token_texts) < MAX_TOKEN_TEXTS:
            self.token_texts.update(zip(chunk.token_id, chunk.token_text))
        if is_shared:
            if self._memory is None:
                raise InternalError(f"{chunk.hook_point}: a chunk has a data_offset, but no memory is shared")
            view = self._memory.view(chunk.data_offset, needed)
            assembler.write(hook_point, chunk.rows, np.frombuffer(view, np.uint8), columns)
            self._memory.release(chunk.data_offset)
        else:
            assembler.write(hook_point, chunk.rows, np.frombuffer(message, np.uint8, length, offset), columns)
        self._progress.rows_came()
        if chunk.resume_token:
            self._request.resume_token = chunk.resume_token
        for batch in assembler.complete():
            if self.feed is not None:
                self.feed.received(batch.first_row + max(batch.rows))
            yield batch

    @staticmethod
    def _columns(chunk: Any) -> list[np.ndarray[Any, Any]]:
        columns: list[np.ndarray[Any, Any]] = [
            np.array(chunk.sequence, np.int64),
            np.array(chunk.position, np.int32),
            np.array(chunk.token_id, np.uint32),
        ]
        for column in columns:
            if len(column) != chunk.rows:
                raise InternalError(f"{chunk.hook_point}: {len(column)} provenance entries for {chunk.rows} rows")
        return columns
