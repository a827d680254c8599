"""The receiver that needs nothing but grpcio."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Deque, Iterator, Optional, Protocol, Tuple

import grpc

from hookline._batches import RawBatch
from hookline._session import Session
from hookline.errors import CancelledError, HooklineError, UnavailableError, from_rpc_error
from hookline.types import CaptureStarted, CaptureSummary


class Receiver(Protocol):
    """Receives a capture's rows into batches. All methods may be called from any thread, `next` by one at a time."""

    def started(self) -> CaptureStarted:
        """What was granted; blocks until the server has said it. Raises what the capture failed of."""

    def next(self) -> Optional[RawBatch]:
        """The next batch, blocking; None at the end. Raises what the capture failed of, or that it was closed."""

    @property
    def summary(self) -> Optional[CaptureSummary]:
        """How it ended, once `next` has returned None."""

    def close(self) -> None:
        """Cancels what is not finished and frees the connection's side of it. Idempotent."""


class _Pipe:
    """A bounded queue of batches between the receiving thread and the consumer, with an end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._batches: Deque[RawBatch] = deque()
        self._ended = False
        self._error: Optional[BaseException] = None

    def put(self, batch: RawBatch) -> bool:
        """Waits for room; False if the pipe has been ended from the other side."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._batches) < self._limit)
            if self._ended:
                return False
            self._batches.append(batch)
            self._changed.notify_all()
            return True

    def end(self, error: Optional[BaseException] = None) -> None:
        """No more batches; after those that are there, `get` raises `error`. Only the first end counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify_all()

    def abort(self, error: BaseException) -> None:
        """Drops what is there; `get` raises `error`, unless it has given out everything already."""
        with self._changed:
            if self._batches or not self._ended:
                self._ended, self._error = True, error
                self._batches.clear()
                self._changed.notify_all()

    def get(self) -> Optional[RawBatch]:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or bool(self._batches))
            if self._batches:
                batch = self._batches.popleft()
                self._changed.notify_all()
                return batch
            if self._error is not None:
                raise self._error
            return None


class _Call:
    """One call of the server: its end, and the moment from which tokens may be sent."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_sequence: Optional[int] = None
        self._over = False

    def announce(self, next_sequence: int) -> None:
        with self._changed:
            self._next_sequence = next_sequence
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait(self) -> Optional[int]:
        """From which sequence on to send; None if the call ended before it said so."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._next_sequence is not None)
            return None if self._over else self._next_sequence


class GrpcReceiver:
    """Reads the stream on a thread of its own, at most `prefetch` batches ahead of the consumer."""

    def __init__(self, channel: grpc.Channel, session: Session, prefetch: int) -> None:
        self._channel = channel
        self._session = session
        self._pipe = _Pipe(prefetch)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._grpc_call: Optional[Any] = None  # guarded by _lock
        self._started = threading.Event()
        self._failure: Optional[BaseException] = None  # set before _started
        self._thread = threading.Thread(target=self._run, name="hookline-receive", daemon=True)
        self._thread.start()

    def started(self) -> CaptureStarted:
        self._started.wait()
        if self._session.started is None:
            raise self._failure or CancelledError("the capture was closed before it started")
        return self._session.started

    def next(self) -> Optional[RawBatch]:
        return self._pipe.get()

    @property
    def summary(self) -> Optional[CaptureSummary]:
        return self._session.summary

    def close(self) -> None:
        self._closed.set()
        self._pipe.abort(CancelledError("the capture was closed"))
        with self._lock:
            call = self._grpc_call
        if call is not None:
            call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                delay = self._session.end(self._run_call())
                if delay is None:
                    for batch in self._session.finish():
                        self._pipe.put(batch)
                    self._pipe.end()
                    return
                if self._closed.wait(delay):
                    return
        except BaseException as error:
            self._failure = error
            self._pipe.end(error)
        finally:
            self._started.set()

    def _run_call(self) -> Optional[HooklineError]:
        """Calls the server once and takes all that comes. What ended the call, None if it ended well."""
        state = _Call()
        call = self._open(state)
        try:
            for message in call:
                for batch in self._session.receive(message):
                    if not self._pipe.put(batch):
                        return CancelledError("the capture was closed")
                next_sequence = self._session.next_sequence
                if next_sequence is not None:
                    state.announce(next_sequence)
                    self._started.set()
            return None
        except grpc.RpcError as error:
            return from_rpc_error(error)
        finally:
            state.finish()
            call.cancel()
            self._session.hang_up()

    def _open(self, state: _Call) -> Any:
        method, first, metadata = self._session.call()
        with self._lock:
            if self._closed.is_set():
                raise CancelledError("the capture was closed")
            channel: Any = self._channel  # messages stay bytes
            try:
                if self._session.feed is None:
                    self._grpc_call = channel.unary_stream(method)(first, metadata=metadata)
                else:
                    if self._session.next_sequence is not None:
                        state.announce(self._session.next_sequence)
                    requests = token_messages(first, state.wait, self._session.tokens)
                    self._grpc_call = channel.stream_stream(method)(requests, metadata=metadata)
            except ValueError as error:  # grpcio's word for a closed channel
                raise UnavailableError(str(error)) from None
            return self._grpc_call


def token_messages(
    first: bytes,
    next_sequence: Callable[[], Optional[int]],
    tokens: Callable[[int], Optional[Tuple[bytes, int]]],
) -> Iterator[bytes]:
    """What a CaptureStream call sends: the request, then the source from the sequence that the server asks for."""
    yield first
    sequence = next_sequence()
    while sequence is not None:
        message = tokens(sequence)
        if message is None:
            return
        yield message[0]
        sequence = message[1]
