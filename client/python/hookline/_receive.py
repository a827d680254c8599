"""The receiver that uses only grpcio."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import grpc

from hookline import _lifetime, _network
from hookline._batches import RawBatch
from hookline._connection import Connection, StreamCall
from hookline._session import Session
from hookline.errors import CancelledError, HooklineError, from_rpc_error
from hookline.types import CaptureStarted, CaptureSummary

# A consumer that takes nothing for this long may take nothing for minutes. Meanwhile no call reads from the connection,
# so that the server's keepalive pings would not be answered.
_PAUSE_SECONDS = 0.1


class Receiver(Protocol):
    """Receives a capture's rows into batches. All methods can be called from any thread; `next` by one at a time."""

    def started(self) -> CaptureStarted:
        """Returns the grant; blocks until the server has sent it. Raises the error with which the capture failed."""

    def next(self) -> RawBatch | None:
        """Returns the next batch, or None at the end; blocks. Raises the error with which the capture failed, after
        returning a batch that was partly received by then; CancelledError if it was closed."""

    @property
    def summary(self) -> CaptureSummary | None:
        """The capture's summary, once `next` has returned None."""

    @property
    def token_texts(self) -> Mapping[int, str]:
        """The texts of the tokens of all rows that `next` has returned, by token id. Grows with each `next`; empty
        without provenance, or if the model has no tokenizer."""

    def cancel(self) -> None:
        """Ends the call: `next` returns what has been received, then raises CancelledError. Idempotent,
        never blocks."""

    def close(self) -> None:
        """Cancels the rest of the capture and releases the connection. Idempotent."""

    def join(self, timeout: float) -> bool:
        """Waits after `cancel`, as `_lifetime.Open` specifies."""

    def abandon(self) -> None:
        """Gives up everything in a forked child, as `_lifetime.Open` specifies."""


class Pipe:
    """A bounded queue of batches between the receiving thread and the consumer, with an end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._batches: deque[RawBatch] = deque()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, batch: RawBatch, timeout: float | None = None) -> bool | None:
        """Adds a batch, after waiting for room. False if the pipe was ended, None if there was no room in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended or len(self._batches) < self._limit, timeout):
                return None
            if self._ended:
                return False
            self._batches.append(batch)
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """Ends the batches: after the last one, `get` raises `error`, or returns None without one. Only the first
        end counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify_all()

    def abort(self, error: BaseException) -> None:
        """Drops waiting batches and makes `get` raise `error`, unless the pipe had already ended and was empty."""
        with self._changed:
            if self._batches or not self._ended:
                self._ended, self._error = True, error
                self._batches.clear()
                self._changed.notify_all()

    def get(self) -> RawBatch | None:
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
    """The state of one call: whether it has ended, the sequence from which tokens can be sent, and the message that is
    passed from the thread that reads the source to grpcio's thread.

    The user's source never runs on a thread of grpcio's: if it returned after the end of the program, that thread would
    hold grpcio's locks.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_sequence: int | None = None
        self._over = False
        self._message: bytes | None = None
        self._sent_all = False
        self._threads: list[threading.Thread] = []

    def announce(self, next_sequence: int) -> None:
        with self._changed:
            self._next_sequence = next_sequence
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait(self) -> int | None:
        """Waits for the first sequence to send, and returns it; None if the call ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._next_sequence is not None)
            return None if self._over else self._next_sequence

    def send(self, message: bytes | None) -> bool:
        """Hands over a message once grpcio has taken the previous one; None ends the messages. False if the call
        is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._message is None)
            if message is None:
                self._sent_all = True
            else:
                self._message = message
            self._changed.notify_all()
            return not self._over

    def messages(self, first: bytes) -> Iterator[bytes]:
        """Yields the messages that the call sends. grpcio iterates on a thread of its own."""
        self.runs_here()
        yield first
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._sent_all or self._message is not None)
                message, self._message = self._message, None
                self._changed.notify_all()
                if self._over or message is None:
                    return
            yield message

    def cancel(self) -> None:
        self.finish()

    def abandon(self) -> None:
        pass

    def runs_here(self, *_: Any) -> None:
        """Notes that this thread of grpcio's works for the call."""
        with self._changed:
            self._threads.append(threading.current_thread())

    def join(self, timeout: float) -> bool:
        """Waits for grpcio's threads after the call's end. Returns whether they have ended in time."""
        end = time.monotonic() + timeout
        with self._changed:
            threads = list(self._threads)
        others = [thread for thread in threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in others)


class _AnsweringPings:
    """Makes grpcio read from the connection inside a `with` block, so that it answers keepalive pings while no other
    call reads. It watches the server's health: that call lasts, and is answered only when the health changes.
    grpcio's own way, `subscribe`, busy-waits once the wall clock has been set back."""

    def __init__(self, connection: Connection) -> None:
        self._call = StreamCall(connection, "/grpc.health.v1.Health/Watch", b"")
        self._thread = threading.Thread(target=self._read, name="hookline-pings", daemon=True)

    def _read(self) -> None:
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._call.cancel()
        self._thread.join()


class OwnThread:
    """The common part of receivers that have a thread of their own, which puts rows into a pipe."""

    _pipe: Pipe
    _thread: threading.Thread
    _forked = False

    def next(self) -> RawBatch | None:
        self._check_process()
        return self._pipe.get()

    def cancel(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self._forked:
            return
        self._pipe.abort(CancelledError("the capture was closed"))
        self.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def join(self, timeout: float) -> bool:
        self._pipe.abort(CancelledError("the capture was closed"))
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        self._forked = True

    def _check_process(self) -> None:
        if self._forked:
            raise _lifetime.of_the_parent()


class GrpcReceiver(OwnThread):
    """Reads the stream on a thread of its own, at most `prefetch` batches ahead of the consumer."""

    def __init__(self, connection: Connection, session: Session, prefetch: int) -> None:
        self._connection = connection
        self._session = session
        self._pipe = Pipe(prefetch)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._grpc_call: Any | None = None  # guarded by _lock
        self._started = threading.Event()
        self._failure: BaseException | None = None  # set before _started
        connection.acquire()
        self._thread = threading.Thread(target=self._run, name="hookline-receive", daemon=True)
        _lifetime.opened(self)
        self._thread.start()

    def started(self) -> CaptureStarted:
        self._check_process()
        self._started.wait()
        if self._session.started is None:
            raise self._failure or CancelledError("the capture was closed before it started")
        return self._session.started

    @property
    def token_texts(self) -> Mapping[int, str]:
        return self._session.token_texts

    @property
    def summary(self) -> CaptureSummary | None:
        return self._session.summary

    def cancel(self) -> None:
        self._closed.set()
        with self._lock:
            call = self._grpc_call
        if call is not None:
            call.cancel()

    def abandon(self) -> None:
        super().abandon()
        _lifetime.keep_for_ever(self._grpc_call)

    def _run(self) -> None:
        try:
            while True:
                error = self._run_call()
                delay = self._session.end(CancelledError("the capture was closed") if self._closed.is_set() else error)
                if delay is None:
                    for batch in self._session.finish():
                        self._pipe.put(batch)
                    self._pipe.end()
                    return
                self._closed.wait(delay)
        except BaseException as error:
            self._failure = error
            for batch in self._session.broken():
                self._pipe.put(batch)
            self._pipe.end(error)
        finally:
            self._started.set()
            self._connection.release()
            _lifetime.ended(self)

    def _run_call(self) -> HooklineError | None:
        """Calls the server once and receives its stream. Returns the error that ended the call, None if it
        ended well."""
        state = _Call()
        call = self._open(state)
        try:
            for message in call:
                for batch in self._session.receive(message):
                    if not self._deliver(batch):
                        return CancelledError("the capture was closed")
                next_sequence = self._session.next_sequence
                if next_sequence is not None:
                    state.announce(next_sequence)
                    self._started.set()
            return None
        except grpc.RpcError as error:
            return _network.name_proxy(from_rpc_error(error), self._connection.address)
        finally:
            state.finish()
            call.cancel()
            _lifetime.ending(state)
            with self._lock:
                self._grpc_call = None
            self._session.hang_up()

    def _deliver(self, batch: RawBatch) -> bool:
        """Hands a batch over. Returns whether the consumer still wants more."""
        taken = self._pipe.put(batch, _PAUSE_SECONDS)
        if taken is None:
            with _AnsweringPings(self._connection):
                taken = self._pipe.put(batch)
        return bool(taken)

    def _open(self, state: _Call) -> Any:
        method, first, offer = self._session.call()
        metadata = [*self._connection.security.metadata, *offer]
        with self._lock:
            if self._closed.is_set():
                raise CancelledError("the capture was closed")
            channel: Any = self._connection.channel  # messages stay bytes
            try:
                if self._session.feed is None:
                    self._grpc_call = channel.unary_stream(method)(first, metadata=metadata)
                else:
                    if self._session.next_sequence is not None:
                        state.announce(self._session.next_sequence)
                    self._grpc_call = channel.stream_stream(method)(state.messages(first), metadata=metadata)
                    self._grpc_call.add_done_callback(state.runs_here)
                    threading.Thread(target=self._send, args=(state,), name="hookline-send", daemon=True).start()
            except ValueError:  # grpcio raises it for a channel that was closed in between
                raise CancelledError("the client was closed") from None
            return self._grpc_call

    def _send(self, state: _Call) -> None:
        """Reads the source for a call, from the sequence that the server asks for."""
        sequence = state.wait()
        while sequence is not None:
            message = self._session.tokens(sequence)
            if not state.send(None if message is None else message[0]) or message is None:
                return
            sequence = message[1]
