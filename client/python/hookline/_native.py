"""The receiver that lets the C++ client write rows into the batches, without the interpreter between two batches."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from hookline import _library, _lifetime, _protocol, _shared_memory
from hookline._arrays import Allocator, Block
from hookline._batches import Layout, RawBatch
from hookline._from_messages import capture_started, capture_summary
from hookline._request import CaptureOptions
from hookline._security import Security
from hookline._session import MAX_TOKEN_TEXTS, Progress, aligned_rows, layout_of, raise_source_error
from hookline._sources import TokenFeed, flat_ids
from hookline.errors import CancelledError, HooklineError
from hookline.types import CaptureStarted, CaptureSummary

if TYPE_CHECKING:
    from hookline._connection import Connection

# The longest wait inside the library. Python's signal handlers only run between two waits, so it delays Ctrl-C.
_WAIT_MS = 200


_METHODS = {
    _protocol.CAPTURE: _library.CAPTURE,
    _protocol.CAPTURE_STREAM: _library.CAPTURE_STREAM,
    _protocol.READ_RECORDING: _library.READ_RECORDING,
}


class NativeClient:
    """A channel of the C++ client's library."""

    def __init__(
        self, functions: Any, address: str, max_receive_bytes: int, shared_memory: bool, security: Security
    ) -> None:
        self.functions = functions
        self.handle = ctypes.c_void_p()
        error = _library.Error()
        result = functions.client_connect_securely(
            address.encode(),
            max_receive_bytes,
            _shared_memory.BYTES if shared_memory else 0,
            ctypes.byref(_library.Security.of(security)),
            ctypes.byref(self.handle),
            ctypes.byref(error),
        )
        if result != _library.OK:
            raise error.exception()

    def close(self) -> None:
        """Frees the channel; running captures go on. Idempotent."""
        handle, self.handle = self.handle, ctypes.c_void_p()
        self.functions.client_free(handle)

    def abandon(self) -> None:
        """Forgets the channel in a forked child, since it is the parent's."""
        self.handle = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.close()


class NativeReceiver:
    """Receives through the library, with `prefetch` batches submitted beside the one that is being filled."""

    def __init__(
        self,
        connection: Connection,
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
    ) -> None:
        self._connection = connection
        self._options = options
        self._make_allocator = make_allocator
        self._request = options.message()
        self._feed = TokenFeed(options.source, options.selection) if options.streams_tokens else None
        self._progress = Progress(options)
        self._reading = threading.Lock()  # held by the thread inside started, wait, submit, resume
        self._writing = threading.Lock()  # held by the thread inside write_tokens
        self._freeing = threading.Lock()  # held only briefly; the handle is not freed while it is held
        self._generation = 0  # the number of the call that tokens are for; guarded by _writing
        self._closed = threading.Event()
        self._forked = False
        self._started: CaptureStarted | None = None
        self._summary: CaptureSummary | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._submitted: deque[RawBatch] = deque()
        self._returned_batches = 0
        self._was_interrupted = False  # True if Ctrl-C came, perhaps between a call of the library and its bookkeeping
        self._unused: Any = None  # memory to submit where nothing will be written
        self._unused_submitted = False
        self._token = b""
        self._token_texts: dict[int, str] = {}
        self._error = _library.Error()
        self._error_reference = ctypes.byref(self._error)
        self._handle = ctypes.c_void_p()
        # These are set once the server has granted the capture. All but the layout and the allocator are refilled for
        # each batch, since the library only reads them during the call.
        self._layout: Layout
        self._allocator: Allocator
        self._rows: Any
        self._addresses: Any
        self._description: _library.Batch
        self._description_reference: Any
        first = self._request.SerializeToString()
        method = _METHODS[options.method]
        connection.acquire()
        try:
            native = connection.native
            self._library = native.functions
            result = self._library.capture_start(
                native.handle, method, first, len(first), ctypes.byref(self._handle), ctypes.byref(self._error)
            )
            if result != _library.OK:
                raise self._error.exception()
        except BaseException:
            connection.release()
            raise
        _lifetime.opened(self)
        self._write_from(self._generation, 0)

    @property
    def summary(self) -> CaptureSummary | None:
        return self._summary

    @property
    def token_texts(self) -> Mapping[int, str]:
        return self._token_texts

    def started(self) -> CaptureStarted:
        if self._forked:
            raise _lifetime.of_the_parent()
        with self._reading:
            self._check()
            try:
                return self._wait_started()
            except Exception as error:
                self._fail(error)
                raise

    def next(self) -> RawBatch | None:
        if self._forked:
            raise _lifetime.of_the_parent()
        with self._reading:
            self._check()
            if self._ended:
                return None
            try:
                return self._next()
            except Exception as error:
                self._fail(error)
                raise
            except BaseException:  # Ctrl-C: the capture continues with the next call
                self._was_interrupted = True
                raise

    def cancel(self) -> None:
        self._closed.set()
        if self._forked:
            return
        with self._freeing:
            if self._handle:
                self._library.capture_cancel(self._handle)  # threads that write or wait return soon

    def close(self) -> None:
        self.cancel()
        if self._forked:
            return
        with self._reading:
            if not self._ended and self._failure is None:
                self._failure = CancelledError("the capture was closed")
            self._free()

    def join(self, timeout: float) -> bool:
        for lock in (self._writing, self._reading):
            if not lock.acquire(timeout=timeout):
                return False
            lock.release()
        self.close()
        return True

    def abandon(self) -> None:
        self._forked = True
        self._handle = ctypes.c_void_p()

    def _free(self) -> None:
        """Under _reading: frees the capture, after its call is over or cancelled. The library's thread ends here."""
        with self._writing:
            self._generation = -1
            with self._freeing:
                handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            self._library.capture_free(handle)  # until then the library's thread can write to submitted memory
            self._connection.release()
            _lifetime.ended(self)
        self._submitted.clear()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        """Under _reading: ends the capture; every later call raises this error."""
        self._failure = error
        self._closed.set()
        self._free()

    def _wait_started(self) -> CaptureStarted:
        """Under _reading: waits for the grant, and makes what depends on it."""
        if self._started is None:
            self._started = capture_started(self._granted())
            self._layout = layout_of(self._started, self._options)
            self._allocator = self._make_allocator(self._started)
            self._rows = (ctypes.c_int64 * len(self._layout.names))()
            self._addresses = (ctypes.c_void_p * len(self._layout.names))()
            self._description = _library.Batch(data=self._addresses)
            self._description_reference = ctypes.byref(self._description)
        return self._started

    def _granted(self) -> Any:
        """Waits for the server's grant. If the server says when to try again, it is called again then."""
        while True:
            try:
                return self._started_message()
            except HooklineError as error:
                if error.retry_after is None:
                    raise
                self._resume(error)

    def _started_message(self) -> Any:
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        while True:
            result = self._library.capture_started(
                self._handle, _WAIT_MS, ctypes.byref(data), ctypes.byref(size), ctypes.byref(self._error)
            )
            if result == _library.OK:
                return _protocol.CaptureStarted.FromString(ctypes.string_at(data.value or 0, size.value))
            if result == _library.ERROR:
                raise self._failed()

    def _failed(self) -> BaseException:
        """Makes the exception for the library's error."""
        if self._closed.is_set():
            return CancelledError("the capture was closed")
        error = self._error.exception()
        return error if self._feed is None else self._feed.named(error)

    def _next(self) -> RawBatch | None:
        self._wait_started()
        if self._was_interrupted:
            returned = self._catch_up()
            if returned is not None:
                return returned
        while True:
            while len(self._submitted) <= self._options.prefetch and self._layout.most_rows(self._next_batch) > 0:
                self._submit()
            if not self._submitted and not self._unused_submitted:
                # All rows are here. The library only waits for the end of a capture if a batch is submitted.
                self._unused_submitted = True
                self._hand_over(1, [None] * len(self._layout.names), ())
            result = self._library.capture_wait(self._handle, _WAIT_MS, self._rows, self._error_reference)
            if result == _library.OK:
                return self._take_batch()
            if result == _library.END:
                self._take_summary()
                self._ended = True
                self._free()
                if self._summary is not None:
                    raise_source_error(self._feed, self._started, self._summary)
                return None
            if result == _library.ERROR:
                try:
                    self._resume(self._failed())
                except HooklineError as error:
                    broken = self._broken_batch()
                    self._fail(error)
                    if broken is None:
                        raise
                    return broken

    def _take_batch(self) -> RawBatch:
        """Takes the oldest submitted batch, which a wait has returned with its rows."""
        batch = self._submitted.popleft()
        self._returned_batches += 1
        self._progress.rows_came()
        batch.rows = list(self._rows)
        self._learn_texts(batch)
        if self._feed is not None:
            self._feed.received(batch.first_row + max(batch.rows))
        return batch

    def _broken_batch(self) -> RawBatch | None:
        """Returns the oldest batch with the rows that it had when the capture failed; None if it had no whole row."""
        if not self._submitted:
            return None
        batch = self._submitted[0]
        batch.rows = aligned_rows(self._layout, batch.index, list(self._rows))
        self._learn_texts(batch)
        return batch if any(batch.rows) else None

    def _learn_texts(self, batch: RawBatch) -> None:
        """Gets the texts of tokens that no earlier batch had from the library."""
        if not batch.columns or len(self._token_texts) >= MAX_TOKEN_TEXTS:
            return
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        for token in set(batch.columns[2][: max(batch.rows)].tolist()).difference(self._token_texts):
            result = self._library.capture_token_text(self._handle, token, ctypes.byref(text), ctypes.byref(size))
            if result != _library.OK:
                return  # either all tokens have texts or none
            self._token_texts[token] = ctypes.string_at(text.value or 0, size.value).decode(errors="replace")

    def _catch_up(self) -> RawBatch | None:
        """Catches up with the library after Ctrl-C, which may have come between a call of the library and the
        bookkeeping here. Returns the batch if a wait had already returned one."""
        submitted, returned = ctypes.c_int64(), ctypes.c_int64()
        self._library.capture_progress(self._handle, ctypes.byref(submitted), ctypes.byref(returned))
        if submitted.value < self._next_batch + self._unused_submitted:
            if self._unused_submitted:
                self._unused_submitted = False
            else:
                batch = self._submitted[-1]
                self._hand_over(batch.most_rows, batch.blocks, batch.columns)
        self._was_interrupted = False
        return self._take_batch() if returned.value > self._returned_batches else None

    @property
    def _next_batch(self) -> int:
        """The index of the next batch to submit."""
        return self._returned_batches + len(self._submitted)

    def _submit(self) -> None:
        """Submits the next batch. It is recorded before it is handed over, so that `_catch_up` can find it."""
        batch = RawBatch(self._layout, self._next_batch, self._allocator, equal_blocks=True)
        self._submitted.append(batch)
        self._hand_over(batch.most_rows, batch.blocks, batch.columns)

    def _hand_over(self, rows: int, blocks: Sequence[Block | None], columns: Sequence[Any]) -> None:
        """Submits memory. Hook points without a block get memory to which nothing will be written."""
        if None in blocks and self._unused is None:
            self._unused = np.empty(self._layout.batch_rows * max(self._layout.widths), np.float32)
        for hook_point, block in enumerate(blocks):
            self._addresses[hook_point] = self._unused.ctypes.data if block is None else block.address
        description = self._description
        description.rows = rows
        if self._layout.provenance:
            addresses: Any = [column.ctypes.data for column in columns] or [None] * 3
            description.sequence, description.position, description.token_id = addresses
        if (
            self._library.capture_submit(self._handle, self._description_reference, self._error_reference)
            != _library.OK
        ):
            raise self._failed()

    def _take_summary(self) -> None:
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        if self._library.capture_summary(self._handle, ctypes.byref(data), ctypes.byref(size)) == _library.OK:
            message = _protocol.CaptureSummary.FromString(ctypes.string_at(data.value or 0, size.value))
            self._summary = capture_summary(message, self._progress.reconnects)

    def _resume(self, error: BaseException) -> None:
        """Calls the server again after `error`, or raises it."""
        if not isinstance(error, HooklineError):
            raise error
        size = self._library.capture_resume_token(self._handle, None, 0)
        buffer = ctypes.create_string_buffer(size + 1)
        self._library.capture_resume_token(self._handle, buffer, size)
        token = buffer.raw[:size]
        if token != self._token:
            self._progress.rows_came()
        self._token = token
        if self._closed.wait(self._progress.delay(error, self._started is not None)):
            raise CancelledError("the capture was closed")
        self._request.resume_token = token
        request = self._request.SerializeToString()
        with self._writing:
            self._generation += 1
            generation = self._generation
            result = self._library.capture_resume(self._handle, request, len(request), ctypes.byref(self._error))
        if result != _library.OK:
            raise self._failed()
        if self._feed is not None:
            try:
                message = self._started_message()
            except HooklineError:
                return  # the next wait reports the same error
            self._write_from(generation, message.next_sequence)

    def _write_from(self, generation: int, sequence: int) -> None:
        if self._feed is not None:
            threading.Thread(
                target=self._write, args=(self._feed, generation, sequence), name="hookline-send", daemon=True
            ).start()

    def _write(self, feed: TokenFeed, generation: int, sequence: int) -> None:
        """Sends the source from this sequence on, until the call ends."""
        error = _library.Error()
        try:
            while True:
                sequences = feed.read(sequence)
                with self._writing:
                    if self._generation != generation:
                        return
                    if sequences is None:
                        self._library.capture_finish_tokens(self._handle)
                        return
                    ids, lengths = flat_ids(sequences)
                    result = self._library.capture_write_tokens(
                        self._handle, ids.ctypes.data, lengths.ctypes.data, len(lengths), ctypes.byref(error)
                    )
                if result != _library.OK:  # the call is over, and the receiving side gets its error
                    return
                sequence += len(sequences)
        except BaseException as problem:  # the source failed: it ends here, and the error is raised after the last rows
            feed.fail(problem)
            with self._writing:
                if self._generation == generation:
                    self._library.capture_finish_tokens(self._handle)
